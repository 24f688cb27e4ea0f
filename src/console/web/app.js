// Entry: who is signed in decides between the sign-in view and the devices.

import { call, ApiError } from '/api.js';
import { showDevices } from '/devices.js';
import { closeDialogs } from '/dialog.js';
import { button, el } from '/dom.js';
import { toast, toastError } from '/toast.js';

const main = document.getElementById('main');
const account = document.getElementById('account');

let stopView = () => {};

function show(...content) {
  stopView();
  stopView = () => {};
  main.replaceChildren(...content);
}

function showSignIn() {
  closeDialogs();
  account.replaceChildren();
  document.title = 'Sign in · edgecloud';
  const returnTo = location.pathname + location.search;
  show(el('section', { class: 'card welcome' },
    el('img', { src: '/icon.svg', alt: '', width: '56', height: '56' }),
    el('h1', {}, 'Your edge boxes, from anywhere'),
    el('p', { class: 'quiet' }, 'Sign in with your organisation’s account to see your devices and to open their pages.'),
    el('a', {
      class: 'button primary',
      href: `/api/auth/login?return_to=${encodeURIComponent(returnTo)}`,
      'data-testid': 'sign-in',
    }, 'Sign in')));
}

function showUnavailable(error) {
  account.replaceChildren();
  show(el('section', { class: 'card welcome' },
    el('h1', {}, 'The server does not answer as it should'),
    el('p', { role: 'alert' }, error.message),
    error.requestId ? el('p', { class: 'quiet' }, `Request ${error.requestId}`) : null,
    button('Try again', start, { class: 'primary' })));
}

async function signOut() {
  let answer;
  try {
    answer = await call('POST', '/api/auth/logout');
  } catch (error) {
    if (error.status !== 401) return toastError(error);
  }
  const next = answer?.end_session_url;
  if (next && /^https?:\/\//.test(next)) {
    stopView();
    location.assign(next);
  } else {
    showSignIn();
  }
}

function loginEnded() {
  showSignIn();
  toast('Your sign-in has ended. Please sign in again.');
}

function showSignedIn(me) {
  account.replaceChildren(
    el('div', { class: 'who' },
      el('strong', { 'data-testid': 'user-name' }, me.user.name || me.user.email || me.user.id),
      me.tenant ? el('span', { class: 'quiet' }, `${me.tenant.name} (${me.tenant.role})`) : null),
    button('Sign out', signOut, { 'data-testid': 'sign-out' }));
  document.title = 'Devices · edgecloud';
  const view = showDevices(me.tenant?.role, loginEnded);
  show(view.element);
  stopView = view.stop;
}

async function start() {
  try {
    showSignedIn(await call('GET', '/api/auth/me'));
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) showSignIn();
    else showUnavailable(error);
  }
}

// A page that the browser took out of its back/forward cache may show somebody who has signed out since.
addEventListener('pageshow', (event) => {
  if (event.persisted) start();
});

start();

// The list of devices: polls while the page is visible, keeps its rows so that focus and selection survive.

import { call, may, serverNow } from '/api.js';
import { confirmDialog, promptDialog } from '/dialog.js';
import { ago, button, el, setText } from '/dom.js';
import { pairDevice } from '/pairing.js';
import { toast, toastError } from '/toast.js';

const POLL_MS = 2_000;
const POLL_AFTER_ERROR_MAX_MS = 30_000;
const PAGE_SIZE = 50;

const REASONS = {
  never_connected: 'never connected',
  disconnected: 'disconnected',
  node_lost: 'its server was lost',
};

/** Makes the view. `stop` ends its polling; `loginEnded` is called when the server answers 401. */
export function showDevices(role, loginEnded) {
  const ended = new AbortController();
  const rows = new Map();
  let pages = 1;
  let errors = 0;
  let timer = null;
  let running = null;

  const summary = el('p', { class: 'quiet', role: 'status' }, 'Loading …');
  const trouble = el('p', { class: 'trouble', role: 'alert', hidden: true });
  const list = el('ul', { class: 'devices', 'aria-label': 'Devices' });
  const more = button('Load more', loadMore, { class: 'more', hidden: true });
  const empty = emptyNotice(role);
  const element = el('section', {},
    el('div', { class: 'head' },
      el('div', {}, el('h1', {}, 'Devices'), summary),
      may(role, 'admin') ? button('Pair a device', pair, { class: 'primary', 'data-testid': 'pair-button' }) : null),
    trouble, empty, list, more);

  async function pair() {
    await attempt(() => pairDevice(refresh), loginEnded);
  }

  async function loadMore() {
    pages += 1;
    await refresh();
  }

  async function fetchPages() {
    const devices = [];
    let cursor = null;
    for (let page = 0; page < pages; page += 1) {
      const query = new URLSearchParams({ limit: PAGE_SIZE });
      if (cursor) query.set('cursor', cursor);
      const answer = await call('GET', `/api/devices?${query}`, undefined, ended.signal);
      devices.push(...answer.items);
      cursor = answer.next_cursor;
      if (!cursor) break;
    }
    return { devices, complete: !cursor };
  }

  function render({ devices, complete }) {
    const known = new Set(devices.map((device) => device.id));
    for (const [id, row] of rows) {
      if (known.has(id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    devices.forEach((device, index) => {
      let row = rows.get(device.id);
      if (!row) {
        row = deviceRow(device.id, role, { refresh, loginEnded });
        rows.set(device.id, row);
      }
      row.update(device);
      if (list.children[index] !== row.element) list.insertBefore(row.element, list.children[index] ?? null);
    });
    const online = devices.filter((device) => device.status === 'online').length;
    setText(summary, devices.length === 0 ? '' : `${devices.length}${complete ? '' : '+'} in the list, ${online} online`);
    empty.hidden = devices.length > 0;
    more.hidden = complete;
  }

  /** One round; the next is planned when it is over, so that a slow server is not asked twice at once. */
  async function round() {
    clearTimeout(timer);
    try {
      render(await fetchPages());
      errors = 0;
      trouble.hidden = true;
    } catch (error) {
      if (ended.signal.aborted) return;
      if (error.status === 401) return loginEnded();
      errors += 1;
      setText(trouble, `The list may be out of date: ${error.message}`);
      trouble.hidden = false;
    }
    if (ended.signal.aborted || document.hidden) return;
    timer = setTimeout(refresh, Math.min(POLL_MS * 2 ** errors, POLL_AFTER_ERROR_MAX_MS));
  }

  /** Reads the list now; a round that is under way may have been too early, so another one follows it. */
  function refresh() {
    const next = (running ?? Promise.resolve()).then(() => (ended.signal.aborted ? undefined : round()));
    running = next;
    next.finally(() => {
      if (running === next) running = null;
    });
    return next;
  }

  function visibilityChanged() {
    if (document.hidden) clearTimeout(timer);
    else refresh();
  }

  document.addEventListener('visibilitychange', visibilityChanged, { signal: ended.signal });
  refresh();
  return {
    element,
    stop() {
      ended.abort();
      clearTimeout(timer);
    },
  };
}

function emptyNotice(role) {
  return el('div', { class: 'card empty', hidden: true },
    el('h2', {}, 'No devices yet'),
    el('p', { class: 'quiet' }, may(role, 'admin')
      ? 'Press “Pair a device” and run the command it shows on the box.'
      : 'An admin of this tenant can pair the first one.'));
}

/** Runs an action of a person and shows what went wrong. */
async function attempt(action, loginEnded) {
  try {
    await action();
  } catch (error) {
    if (error.status === 401) loginEnded();
    else toastError(error);
  }
}

function deviceRow(id, role, { refresh, loginEnded }) {
  const path = `/api/devices/${encodeURIComponent(id)}`;
  let device = null;

  const name = el('h2', { 'data-testid': 'device-name' });
  const badge = el('span', { class: 'badge', 'data-testid': 'device-status' });
  const detail = el('span', { class: 'quiet' });
  const facts = el('p', { class: 'facts quiet' });
  const operator = may(role, 'operator');
  const admin = may(role, 'admin');
  const act = (action) => () => attempt(action, loginEnded);
  const openButton = operator ? button('Open', act(open), { class: 'primary', 'data-testid': 'open-device' }) : null;
  const disconnectButton = operator ? button('Disconnect', act(disconnect)) : null;
  const element = el('li', { class: 'card device', 'data-testid': 'device-row', 'data-device': id },
    el('div', { class: 'about' }, el('div', { class: 'title' }, name, badge, detail), facts),
    el('div', { class: 'actions' },
      openButton,
      admin ? button('Rename', act(rename), { 'data-testid': 'rename-device' }) : null,
      disconnectButton,
      admin ? button('Remove', act(remove), { class: 'danger', 'data-testid': 'remove-device' }) : null));

  async function open() {
    // The window is opened within the click, before the answer, or the browser takes it for a pop-up.
    const page = window.open('about:blank', '_blank');
    if (!page) return toast('The browser blocked the new tab. Allow pop-ups for this page.', { error: true });
    // The device's page must not reach back to the console.
    page.opener = null;
    try {
      const answer = await call('POST', `${path}/open`, { path: '/' });
      page.location.replace(answer.url);
    } catch (error) {
      page.close();
      throw error;
    }
  }

  async function rename() {
    const answer = await promptDialog('Rename device', 'Name', device.name, 'Rename');
    if (answer === null || answer === device.name) return;
    await call('PATCH', path, { name: answer });
    await refresh();
  }

  async function disconnect() {
    await call('DELETE', `${path}/session`);
    toast(`${device.name} was disconnected. Its agent will try to connect again.`);
    await refresh();
  }

  async function remove() {
    const text = `${device.name} loses its access at once and must be paired again to come back.`;
    if (!await confirmDialog('Remove device?', text, 'Remove')) return;
    await call('DELETE', path);
    await refresh();
  }

  function update(next) {
    device = next;
    const online = device.status === 'online';
    setText(name, device.name || device.id);
    setText(badge, online ? 'online' : 'offline');
    badge.classList.toggle('online', online);
    setText(detail, statusDetail(device));
    setText(facts, factsOf(device));
    openButton?.setAttribute('aria-label', `Open ${device.name}`);
    openButton?.classList.toggle('off', !online);
    if (disconnectButton) disconnectButton.hidden = !online;
  }

  return { element, update };
}

function statusDetail(device) {
  if (device.status === 'online') {
    const rtt = device.session?.rtt_ms;
    return typeof rtt === 'number' ? `${rtt < 10 ? rtt.toFixed(1) : Math.round(rtt)} ms` : '';
  }
  const parts = [];
  if (device.reason) parts.push(REASONS[device.reason] ?? device.reason);
  if (device.last_seen) parts.push(`last seen ${ago(Date.parse(device.last_seen), serverNow())}`);
  return parts.join(', ');
}

function factsOf(device) {
  const parts = [];
  const session = device.session;
  const agent = session?.agent_version;
  if (agent) parts.push(agent.includes('/') ? agent : `agent ${agent}`);
  if (session?.connected_at) parts.push(`connected ${ago(Date.parse(session.connected_at), serverNow())}`);
  if (session?.remote_addr) parts.push(`from ${session.remote_addr}`);
  if (device.created_at) parts.push(`paired ${new Date(device.created_at).toLocaleDateString()}`);
  return parts.join(' · ');
}

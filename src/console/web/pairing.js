// The pairing dialog: a code, how long it is valid, the command to run, and what paired with it.

import { call, serverNow } from '/api.js';
import { openDialog } from '/dialog.js';
import { button, countdown, el, setText } from '/dom.js';
import { toast, toastError } from '/toast.js';

const POLL_MS = 1_000;
const TICK_MS = 250;
const ORIGIN = 'http://127.0.0.1:8080';

/** Makes a code and shows it; `changed` is called when a device was paired or removed. */
export async function pairDevice(changed) {
  const code = await call('POST', '/api/pairing/codes', {});
  showCode(code, changed);
}

function showCode(code, changed) {
  const path = `/api/pairing/codes/${encodeURIComponent(code.id)}`;
  const expires = Date.parse(code.expires_at);
  const over = new AbortController();
  const body = el('div', { class: 'pairing' });
  let open = true;

  const { dialog, close } = openDialog('Pair a device', body, () => {
    // The second time somebody closes the dialog, they have seen the question.
    if (!open || body.querySelector('.leave')) return true;
    body.append(leaveQuestion());
    return false;
  });
  dialog.addEventListener('close', () => over.abort());

  const left = el('span', { role: 'timer' });
  const command = ['edgecloud agent', `--cloud ${location.origin}`, `--pair ${code.code}`, `--origin ${ORIGIN}`];
  body.append(
    el('p', {}, 'Run this on the box. Put the address of the box’s own web server in place of the last one if it differs.'),
    el('output', { class: 'code', 'data-testid': 'pairing-code', 'aria-label': 'Pairing code' }, code.code),
    el('p', { class: 'quiet center' }, 'Valid for one device, for ', left),
    commandLine(command),
    el('p', { class: 'waiting quiet', role: 'status' }, 'Waiting for the device …'));

  function leaveQuestion() {
    const question = el('div', { class: 'leave', role: 'alert' },
      el('p', {}, 'Nothing has paired with this code yet. Until it expires, whoever has it can pair a device.'),
      el('div', { class: 'actions' },
        button('Keep the code', close),
        button('Revoke the code', revoke, { class: 'danger', 'data-testid': 'revoke-code' })));
    queueMicrotask(() => question.querySelector('button').focus());
    return question;
  }

  async function revoke() {
    try {
      await call('DELETE', path);
      close();
    } catch (error) {
      toastError(error);
    }
  }

  function ended(status) {
    open = false;
    const text = status === 'revoked' ? 'The code was revoked.' : 'The code has expired.';
    body.replaceChildren(
      el('p', { role: 'status' }, text),
      el('div', { class: 'actions' },
        button('Close', close),
        button('New code', async () => {
          try {
            await pairDevice(changed);
            close();
          } catch (error) {
            toastError(error);
          }
        }, { class: 'primary' })));
  }

  function used(device) {
    open = false;
    body.replaceChildren(pairedNotice(device, close, changed));
    changed();
  }

  async function poll() {
    if (over.signal.aborted || !open) return;
    try {
      const state = await call('GET', path, undefined, over.signal);
      if (state.status === 'used') return used(state.device);
      if (state.status !== 'open') return ended(state.status);
    } catch (error) {
      if (over.signal.aborted) return;
      // A code that is gone cannot be used; anything else may heal.
      if (error.status === 404) return ended('revoked');
    }
    setTimeout(poll, POLL_MS);
  }

  function tick() {
    if (over.signal.aborted || !open) return;
    setText(left, countdown(expires - serverNow()));
    setTimeout(tick, TICK_MS);
  }

  tick();
  setTimeout(poll, POLL_MS);
}

/** The command in one line that breaks between its parts only. */
function commandLine(parts) {
  const command = parts.join(' ');
  const text = el('code', { 'data-testid': 'pairing-command', tabindex: '0', 'aria-label': 'Command to run on the device' },
    parts.flatMap((part, index) => [index > 0 ? ' ' : null, el('span', {}, part)]));
  return el('div', { class: 'command' }, text, button('Copy', async (event) => {
    const pressed = event.currentTarget;
    try {
      await navigator.clipboard.writeText(command);
      setText(pressed, 'Copied');
      setTimeout(() => setText(pressed, 'Copy'), 2_000);
    } catch {
      // Without a secure context there is no clipboard: leave the text selected instead.
      getSelection().selectAllChildren(text);
      toast('Press Ctrl+C to copy the selected command.');
    }
  }));
}

function pairedNotice(device, close, changed) {
  if (!device) {
    return el('div', {},
      el('p', { role: 'status' }, 'A device paired with this code and was removed since.'),
      el('div', { class: 'actions' }, button('Close', close, { class: 'primary' })));
  }
  const system = [device.os, device.arch].filter(Boolean).join(' / ');
  const fact = (term, value) => (value ? [el('dt', {}, term), el('dd', {}, value)] : []);
  return el('div', { 'data-testid': 'paired-device' },
    el('p', { role: 'status' }, el('strong', {}, device.name || device.hostname || device.id), ' has joined. Is it the box you meant?'),
    el('dl', {},
      fact('Host name', device.hostname),
      fact('System', system),
      fact('Address', device.remote_addr),
      fact('Device', device.id)),
    el('div', { class: 'actions' },
      button('No, remove it', async () => {
        try {
          await call('DELETE', `/api/devices/${encodeURIComponent(device.id)}`);
          toast('The device was removed and has no access any more.');
          close();
          changed();
        } catch (error) {
          toastError(error);
        }
      }, { class: 'danger' }),
      button('Yes, done', close, { class: 'primary', 'data-testid': 'pairing-done' })));
}

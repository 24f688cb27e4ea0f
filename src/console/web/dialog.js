// Modal dialogs: the frame, a question, a line of text.

import { button, el } from '/dom.js';

let lastId = 0;

/** Opens a modal dialog; `beforeClose` may return false to keep it open. Returns the element and `close`. */
export function openDialog(title, content, beforeClose = () => true) {
  const id = `dialog-${++lastId}`;
  const dialog = el('dialog', { 'aria-labelledby': id });
  const close = () => dialog.close();
  const tryClose = () => beforeClose() && close();
  dialog.append(
    el('div', { class: 'dialog-head' },
      el('h2', { id }, title),
      el('button', { type: 'button', class: 'plain', 'aria-label': 'Close', onclick: tryClose }, '×')),
    content,
    el('div', { class: 'dialog-toasts', 'aria-live': 'polite' }));
  dialog.addEventListener('cancel', (event) => {
    event.preventDefault();
    tryClose();
  });
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, close };
}

/** Closes every dialog, for when the login has ended. */
export function closeDialogs() {
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
}

/** Asks before something that cannot be taken back; resolves to whether the answer was yes. */
export function confirmDialog(title, text, yes) {
  return new Promise((resolve) => {
    let answer = false;
    const content = el('div', {}, el('p', {}, text));
    const { dialog, close } = openDialog(title, content);
    content.append(el('div', { class: 'actions' },
      button('Cancel', close, { autofocus: true }),
      button(yes, () => {
        answer = true;
        close();
      }, { class: 'danger', 'data-testid': 'confirm' })));
    dialog.addEventListener('close', () => resolve(answer));
    content.querySelector('button').focus();
  });
}

/** Asks for one line of text; resolves to it, or to null when cancelled. */
export function promptDialog(title, label, value, yes) {
  return new Promise((resolve) => {
    let answer = null;
    const input = el('input', { type: 'text', value, required: true, maxlength: '100', autocomplete: 'off' });
    const form = el('form', {}, el('label', {}, label, input));
    const { dialog, close } = openDialog(title, form);
    form.append(el('div', { class: 'actions' },
      button('Cancel', close),
      el('button', { type: 'submit', class: 'primary' }, yes)));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      answer = input.value.trim();
      if (answer !== '') close();
    });
    dialog.addEventListener('close', () => resolve(answer === '' ? null : answer));
    input.focus();
    input.select();
  });
}

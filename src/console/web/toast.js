// Short messages at the edge of the page.

const VISIBLE_MS = 8_000;
const AT_MOST = 4;

/** Shows a message for a few seconds. */
export function toast(message, { error = false, note = null } = {}) {
  const host = document.getElementById('toasts');
  const item = document.createElement('div');
  item.className = error ? 'toast error' : 'toast';
  item.setAttribute('role', error ? 'alert' : 'status');
  const text = document.createElement('p');
  text.textContent = message;
  item.append(text);
  if (note) {
    const small = document.createElement('small');
    small.textContent = note;
    item.append(small);
  }
  const close = document.createElement('button');
  close.type = 'button';
  close.className = 'plain';
  close.textContent = '×';
  close.setAttribute('aria-label', 'Dismiss');
  close.addEventListener('click', () => item.remove());
  item.append(close);
  // A modal dialog lies over the whole page: messages go where they can be seen.
  (document.querySelector('dialog[open] .dialog-toasts') ?? host).append(item);
  while (item.parentElement.children.length > AT_MOST) item.parentElement.firstElementChild.remove();
  setTimeout(() => item.remove(), VISIBLE_MS);
}

/** Shows a failure with the request id that the operator finds in the server's log. */
export function toastError(error) {
  toast(error.message, { error: true, note: error.requestId ? `Request ${error.requestId}` : null });
}

// The only place that talks to the server. Every failure is an ApiError that can be shown as it is.

const REQUEST_TIMEOUT_MS = 15_000;

let clockOffset = 0;

/** The server's time in milliseconds: countdowns must not depend on a wrong clock of the computer. */
export function serverNow() {
  return Date.now() + clockOffset;
}

/** A request that failed, with what the server said about it (RFC 9457). */
export class ApiError extends Error {
  constructor(status, problem, requestId) {
    super(problem.detail || problem.title || `The server answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? null;
    this.requestId = problem.request_id ?? requestId ?? null;
  }
}

/** Sends a request and returns the JSON of the answer, `null` when there is none. */
export async function call(method, path, body, signal) {
  const limit = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
  let response;
  let text;
  try {
    response = await fetch(path, {
      method,
      credentials: 'same-origin',
      cache: 'no-store',
      headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, { detail: 'The server cannot be reached.' });
  }
  const date = Date.parse(response.headers.get('Date') ?? '');
  // The header has whole seconds; a smaller difference is no sign of a wrong clock.
  if (!Number.isNaN(date)) clockOffset = Math.abs(date - Date.now()) < 2000 ? 0 : date - Date.now();
  const json = parse(text);
  if (!response.ok) throw new ApiError(response.status, json ?? {}, response.headers.get('X-Request-Id'));
  return json;
}

function parse(text) {
  try {
    return text === '' ? null : JSON.parse(text);
  } catch {
    return null;
  }
}

const ROLES = ['viewer', 'operator', 'admin', 'owner'];

/** Whether a member with `role` may do what `needed` may. The server checks; this only hides buttons. */
export function may(role, needed) {
  return ROLES.indexOf(role) >= ROLES.indexOf(needed);
}

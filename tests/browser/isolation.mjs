// What a device's page tries against the person who looks at it, in Chromium: by a path of the console's host, and on
// its own host. Everything must fail.
//
// Environment: EDGECLOUD_URL (the console), DEVICE (an online device's id) and optionally CHROMIUM (the browser's path).
// The device's origin answers /do/answer with the media type and the body of the query, and /do/websocket with a
// WebSocket. Exits 0 or says what failed and exits 1.

import process from 'node:process';
import { chromium } from 'playwright-core';

const STEP_LIMIT_MS = 20_000;

const consoleUrl = new URL(process.env.EDGECLOUD_URL).origin;
const deviceId = process.env.DEVICE;
const byPath = `${consoleUrl}/api/devices/${deviceId}/http`;
const served = (type, body) => `/do/answer?content-type=${encodeURIComponent(type)}&body=${encodeURIComponent(body)}`;
const PAGE = served('text/html', '<!doctype html><title>a device</title><script>document.title = "scripts run"</script>');
const WORKER = served('text/javascript', 'self.onfetch = () => {}');

function check(condition, message) {
  if (!condition) throw new Error(message);
}

/** Runs in the device's page, with all that a script there may do; answers what came of each attempt. */
async function attack({ consoleUrl, byPath, worker }) {
  const attempt = async (action) => {
    try {
      return String(await action());
    } catch (error) {
      return `refused: ${error.name}`;
    }
  };
  const opened = (url) => new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.onopen = () => resolve('open');
    socket.onerror = () => reject(new Error('no WebSocket'));
  });
  const framed = (url) => new Promise((resolve) => {
    const frame = document.createElement('iframe');
    frame.onload = () => {
      try {
        resolve(frame.contentDocument?.querySelector('[data-testid=user-name]') ? 'read' : 'refused: nothing to read');
      } catch (error) {
        resolve(`refused: ${error.name}`);
      }
    };
    frame.src = url;
    document.documentElement.append(frame);
  });
  const post = { method: 'POST', credentials: 'include', headers: { 'content-type': 'text/plain' }, body: '{}' };
  const result = {
    read: await attempt(async () => (await fetch(`${consoleUrl}/api/auth/me`, { credentials: 'include' })).status),
    post: await attempt(async () => (await fetch(`${consoleUrl}/api/pairing/codes`, post)).status),
    forged: await attempt(async () => (await fetch(`${consoleUrl}/api/pairing/codes`, {
      ...post, headers: { 'content-type': 'application/json', 'edgecloud-csrf': '1' },
    })).status),
    websocket: await attempt(() => opened(`${byPath.replace(/^http/, 'ws')}/do/websocket`)),
    worker: await attempt(async () => (await navigator.serviceWorker.register(`${byPath}${worker}`, { scope: `${consoleUrl}/` })).scope),
    frame: await attempt(() => framed(`${consoleUrl}/`)),
    cookies: await attempt(() => document.cookie),
    opener: await attempt(() => window.opener === null && window.parent === window),
  };
  // Sent blindly, as a form would be; what came of it shows at the console.
  await attempt(() => fetch(`${consoleUrl}/api/pairing/codes`, { ...post, mode: 'no-cors' }));
  await attempt(() => fetch(`${consoleUrl}/api/auth/logout`, { ...post, mode: 'no-cors' }));
  for (const name of ['edgecloud', '__Host-edgecloud', 'edgecloud-device']) {
    for (const domain of ['', '; Domain=localhost', '; Domain=.localhost']) {
      await attempt(() => { document.cookie = `${name}=tossed; Path=/${domain}`; });
    }
  }
  return result;
}

async function signIn(page) {
  await page.goto(`${consoleUrl}/`);
  await page.getByTestId('sign-in').click();
  await page.locator('button[name=user][value=alice], input[name=user][value=alice]').click();
  await page.getByTestId('user-name').waitFor();
}

async function loginCookies(context) {
  return (await context.cookies(`${consoleUrl}/`)).map(({ name, value, domain }) => `${name}=${value} ${domain}`).sort().join(', ');
}

/** What must be the same afterwards. */
async function standing(page) {
  return page.evaluate(async () => {
    const read = async (path) => {
      const answer = await fetch(path, { cache: 'no-store' });
      return `${answer.status} ${await answer.text()}`;
    };
    const me = JSON.parse((await read('/api/auth/me')).slice(4));
    const codes = await read('/api/pairing/codes');
    const workers = await navigator.serviceWorker.getRegistrations();
    return JSON.stringify({ user: me.user, login: me.login?.id, codes, workers: workers.length, controller: navigator.serviceWorker.controller });
  });
}

async function attackFrom(page, device, secret) {
  const result = await device.evaluate(attack, { consoleUrl, byPath, worker: WORKER });
  for (const tried of ['read', 'post', 'forged', 'websocket', 'worker', 'frame']) {
    check(result[tried].startsWith('refused'), `${tried} from ${device.url()}: ${result[tried]}`);
  }
  check(!result.cookies.includes(secret), `the page can read the login's cookie: ${result.cookies}`);
  check(result.opener === 'true', 'the page has a hold of another window');
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking'],
  timeout: STEP_LIMIT_MS,
});
let code = 0;
// The caller hears what hangs, too.
const limit = setTimeout(() => {
  console.error('FAILED: no end');
  process.exit(1);
}, 2 * STEP_LIMIT_MS);
try {
  const context = await browser.newContext();
  context.setDefaultTimeout(STEP_LIMIT_MS);
  const page = await context.newPage();
  await signIn(page);
  const [cookie] = await context.cookies(`${consoleUrl}/`);
  const [before, cookies] = [await standing(page), await loginCookies(context)];

  // By a path of the console's host, opened by the console's own page: it is there to be read, and runs nothing.
  const [shown] = await Promise.all([
    context.waitForEvent('page'),
    page.evaluate((url) => { window.open(url, '_blank', 'noopener'); }, `${byPath}${PAGE}`),
  ]);
  await shown.waitForURL(`${byPath}${PAGE}`, { waitUntil: 'load' });
  check((await shown.title()) === 'a device', `its script has run, or it was not shown: ${await shown.title()}`);
  check((await shown.evaluate(() => window.origin)) === 'null', 'the page has the console’s origin');
  // No script of it runs, and neither would a timer or a handler: what is left is what answers at once.
  const reached = await shown.evaluate(() => {
    const attempt = (action) => {
      try {
        return String(action());
      } catch (error) {
        return `refused: ${error.name}`;
      }
    };
    return {
      read: attempt(() => document.cookie),
      toss: attempt(() => { document.cookie = 'edgecloud=tossed; Path=/'; }),
      storage: attempt(() => localStorage.length),
      worker: attempt(() => navigator.serviceWorker.controller),
      alone: attempt(() => window.opener === null && window.parent === window),
    };
  });
  for (const tried of ['read', 'toss', 'storage', 'worker']) {
    check(reached[tried].startsWith('refused'), `${tried} by path: ${reached[tried]}`);
  }
  check(reached.alone === 'true', 'the page has a hold of another window');
  check((await standing(page)) === before, `something changed: ${before} is now ${await standing(page)}`);
  check((await loginCookies(context)) === cookies, 'a cookie was tossed');
  console.log('ok  by path');

  // On its own host, opened by the console: its script runs there, and reaches nothing of the console.
  const [device] = await Promise.all([
    context.waitForEvent('page'),
    page.getByTestId('open-device').first().click(),
  ]);
  await device.waitForURL(/^https?:\/\/dev-/, { waitUntil: 'load' });
  await device.goto(new URL(PAGE, device.url()).href);
  check((await device.title()) === 'scripts run', `its script has not run: ${await device.title()}`);
  await attackFrom(page, device, cookie.value);
  check((await standing(page)) === before, `something changed: ${before} is now ${await standing(page)}`);
  check((await loginCookies(context)) === cookies, 'a cookie was tossed');
  await page.reload();
  await page.getByTestId('user-name').waitFor();
  console.log('ok  on its own host');
} catch (error) {
  code = 1;
  console.error(`FAILED: ${error.message}`);
} finally {
  clearTimeout(limit);
  await browser.close();
}
process.exit(code);

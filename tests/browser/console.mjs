// What a person does, in Chromium: sign in, pair a box, open its page, sign out.
//
// The caller has started the cloud and an origin; this script starts the agent that the pairing dialog asks for.
// Environment: EDGECLOUD_URL (the console), EDGECLOUD_BIN, STATE_DIR (the agent's), ORIGIN_URL (an HTML page with a
// title), and optionally CHROMIUM (the browser's path) and SCREENSHOT_DIR. Exits 0 or says what failed and exits 1.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { chromium } from 'playwright-core';

const TOTAL_LIMIT_MS = 60_000;
const STEP_LIMIT_MS = 20_000;
const KILL_AFTER_MS = 3_000;
const AGENT_LOG_LIMIT = 4_000;

const BROWSER_FLAGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

const consoleUrl = new URL(required('EDGECLOUD_URL')).origin;
const agentBinary = required('EDGECLOUD_BIN');
const stateDir = required('STATE_DIR');
const originUrl = required('ORIGIN_URL');

let current = 'start';
let browser = null;
let agent = null;
let agentLog = '';
const complaints = [];

function required(name) {
  const value = process.env[name];
  if (!value) {
    console.error(`browser test: ${name} is not set`);
    process.exit(2);
  }
  return value;
}

function check(condition, message) {
  if (!condition) throw new Error(message);
}

async function step(name, action) {
  current = name;
  const started = Date.now();
  const result = await action();
  console.log(`ok  ${name} (${Date.now() - started} ms)`);
  return result;
}

/** Waits until `probe` answers something true. */
async function until(what, probe) {
  const deadline = Date.now() + STEP_LIMIT_MS;
  for (;;) {
    const result = await probe();
    if (result) return result;
    check(Date.now() < deadline, `${what}: not within ${STEP_LIMIT_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function watch(page) {
  page.on('pageerror', (error) => complaints.push(`script error on ${page.url()}: ${error.message}`));
  page.on('console', (message) => {
    if (/Content.Security.Policy/i.test(message.text())) complaints.push(message.text());
  });
}

async function signIn(page) {
  await page.goto(`${consoleUrl}/`);
  await page.getByTestId('sign-in').click();
  await page.locator('button[name=user][value=alice], input[name=user][value=alice]').click();
  const name = await page.getByTestId('user-name').textContent();
  check(/alice/i.test(name), `the header should name alice, it says ${JSON.stringify(name)}`);
}

async function readCode(page) {
  await page.getByTestId('pair-button').click();
  const code = (await page.getByTestId('pairing-code').textContent()).trim();
  check(/^[A-Z0-9]{4}-[A-Z0-9]{4}$/.test(code), `not a pairing code: ${JSON.stringify(code)}`);
  const command = await page.getByTestId('pairing-command').textContent();
  check(command.startsWith(`edgecloud agent --cloud ${consoleUrl} --pair ${code} `), `unexpected command: ${command}`);
  return code;
}

function startAgent(code, stateDir) {
  agent = spawn(
    agentBinary,
    ['agent', '--cloud', consoleUrl, '--pair', code, '--origin', new URL(originUrl).origin, '--state-dir', stateDir],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  const keep = (chunk) => {
    agentLog = (agentLog + chunk).slice(-AGENT_LOG_LIMIT);
  };
  agent.stdout.on('data', keep);
  agent.stderr.on('data', keep);
  agent.on('error', (error) => keep(`cannot start ${agentBinary}: ${error.message}\n`));
}

/** The dialog shows what has paired; the device is in already, whether or not anybody presses a button. */
async function seePaired(page) {
  const notice = page.getByTestId('paired-device');
  await until('the dialog shows what paired', async () => {
    check(agent.exitCode === null, `the agent ended with ${agent.exitCode}`);
    return notice.isVisible();
  });
  const facts = Object.fromEntries(await notice.locator('dl').evaluate((list) => (
    [...list.querySelectorAll('dt')].map((term) => [term.textContent, term.nextElementSibling.textContent])
  )));
  check(facts['Host name'] === hostname(), `the host name should be ${hostname()}: ${JSON.stringify(facts)}`);
  check(/^linux\b/.test(facts.System), `the system should be named: ${JSON.stringify(facts)}`);
  check(facts.Address === '127.0.0.1', `the address should be shown: ${JSON.stringify(facts)}`);
  await until('the device is online without a confirmation', () => page.evaluate(async (id) => {
    const answer = await fetch(`/api/devices/${id}`);
    return answer.ok && (await answer.json()).status === 'online';
  }, facts.Device));
  check(await notice.isVisible(), 'the dialog should stay until somebody closes it');
  return { notice, id: facts.Device };
}

async function removePaired(page) {
  const { notice, id } = await seePaired(page);
  await notice.getByRole('button', { name: 'No, remove it' }).click();
  await notice.waitFor({ state: 'detached' });
  const status = await page.evaluate(async (id) => (await fetch(`/api/devices/${id}`)).status, id);
  check(status === 404, `the removed device should be gone, it answers ${status}`);
  await until('no device is listed', async () => await page.getByTestId('device-row').count() === 0);
  await stopAgent();
}

async function waitOnline(page) {
  await page.getByTestId('pairing-done').click();
  const status = page.getByTestId('device-row').first().getByTestId('device-status');
  await until('the device is online', async () => {
    check(agent.exitCode === null && agent.signalCode === null, `the agent ended with ${agent.exitCode ?? agent.signalCode}`);
    return await status.count() > 0 && (await status.textContent()).trim() === 'online';
  });
  const rows = await page.getByTestId('device-row').count();
  check(rows === 1, `one device should be listed, not ${rows}`);
}

function titleOf(html) {
  return /<title>([^<]*)<\/title>/i.exec(html)?.[1].trim();
}

async function openDevice(page) {
  const expected = titleOf(await (await fetch(originUrl)).text());
  check(expected, `the origin's page at ${originUrl} should have a title`);
  const [opened] = await Promise.all([
    page.context().waitForEvent('page'),
    page.getByTestId('open-device').first().click(),
  ]);
  await opened.waitForURL(/^https?:\/\/dev-/, { waitUntil: 'load' });
  const { hostname } = new URL(opened.url());
  check(/^dev-[a-z2-7]{26}\.localhost$/.test(hostname), `not the device's own host: ${hostname}`);
  await until('the origin’s page is shown', async () => (await opened.title()).trim() === expected);
  return opened;
}

/** What a device serves must reach neither the console's cookie nor its API, nor the console's window. */
async function checkIsolation(page, device) {
  const context = page.context();
  const secrets = (await context.cookies(`${consoleUrl}/`)).filter((cookie) => /^(__Host-)?edgecloud$/.test(cookie.name));
  check(secrets.length === 1, `the console should have one login cookie, it has ${secrets.length}`);
  check(secrets[0].httpOnly && secrets[0].sameSite === 'Strict', 'the login cookie should be HttpOnly and SameSite=Strict');
  const sent = (await (await device.reload()).request().allHeaders()).cookie ?? '';
  check(sent !== '', 'the device’s host should have its own cookie');
  check(!sent.includes(secrets[0].value), 'the device’s host was sent the login cookie');
  const seen = await device.evaluate(() => document.cookie);
  check(!seen.includes(secrets[0].value), 'the device’s page can read the login cookie');
  const answer = await device.evaluate(async (url) => {
    try {
      return `status ${(await fetch(url, { credentials: 'include' })).status}`;
    } catch {
      return 'refused';
    }
  }, `${consoleUrl}/api/auth/me`);
  check(answer === 'refused', `the device's page could call the API: ${answer}`);
  check(await device.evaluate(() => window.opener === null), 'the device’s page has a hold of the console’s window');
}

async function signOut(page, device) {
  const answered = page.waitForResponse((response) => response.url() === `${consoleUrl}/api/auth/logout`);
  await page.getByTestId('sign-out').click();
  const status = (await answered).status();
  check(status === 200, `sign-out should answer 200, not ${status}`);
  // The provider's own sign-out page may come first; it need not lead back.
  await until('the sign-in view or the provider', async () => (
    new URL(page.url()).origin !== consoleUrl || page.getByTestId('sign-in').isVisible()
  ));
  if (new URL(page.url()).origin !== consoleUrl) await page.waitForLoadState();
  if (new URL(page.url()).origin !== consoleUrl) await page.goto(`${consoleUrl}/`);
  await page.getByTestId('sign-in').waitFor();
  const me = await page.evaluate(async () => (await fetch('/api/auth/me')).status);
  check(me === 401, `after the sign-out /api/auth/me should answer 401, not ${me}`);
  await until('the device’s page is closed to a dead login', () => device.evaluate(async () => {
    const answer = await fetch('/', { cache: 'no-store', redirect: 'manual' });
    return answer.status !== 200;
  }).catch(() => true));
}

async function run() {
  browser = await step('start Chromium', () => chromium.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: BROWSER_FLAGS,
    timeout: STEP_LIMIT_MS,
  }));
  const context = await browser.newContext();
  context.setDefaultTimeout(STEP_LIMIT_MS);
  context.on('page', watch);
  const page = await context.newPage();
  await step('sign in as alice', () => signIn(page));
  const unwanted = await step('make a pairing code', () => readCode(page));
  await step('see what paired, and remove it', async () => {
    startAgent(unwanted, `${stateDir}-unwanted`);
    await removePaired(page);
  });
  const code = await step('make another pairing code', () => readCode(page));
  await step('pair the agent', async () => {
    startAgent(code, stateDir);
    await seePaired(page);
  });
  await step('see the device online', () => waitOnline(page));
  const device = await step('open the device on its own host', () => openDevice(page));
  await step('keep the device away from the console', () => checkIsolation(page, device));
  await step('sign out', () => signOut(page, device));
  const own = complaints.filter((text) => !text.includes('://dev-'));
  check(own.length === 0, `the browser complained:\n${own.join('\n')}`);
}

async function stopAgent() {
  if (!agent?.pid || agent.exitCode !== null || agent.signalCode !== null) return;
  const ended = once(agent, 'exit');
  const force = setTimeout(() => agent.kill('SIGKILL'), KILL_AFTER_MS);
  agent.kill('SIGTERM');
  await ended;
  clearTimeout(force);
}

async function saveScreenshots() {
  const pages = browser?.contexts().flatMap((context) => context.pages()) ?? [];
  for (const [index, page] of pages.entries()) {
    const path = join(process.env.SCREENSHOT_DIR || tmpdir(), `edgecloud-console-${process.pid}-${index}.png`);
    try {
      await page.screenshot({ path, timeout: KILL_AFTER_MS });
      console.error(`screenshot of ${page.url()}: ${path}`);
    } catch (error) {
      console.error(`no screenshot of ${page.url()}: ${error.message.split('\n')[0]}`);
    }
  }
}

let limit;
const tooLong = new Promise((_, reject) => {
  limit = setTimeout(() => reject(new Error(`the whole test took over ${TOTAL_LIMIT_MS} ms`)), TOTAL_LIMIT_MS);
});
let code = 0;
try {
  await Promise.race([run(), tooLong]);
  console.log('browser test passed');
} catch (error) {
  code = 1;
  await saveScreenshots();
  for (const complaint of complaints) console.error(`browser: ${complaint}`);
  if (agentLog) console.error(`--- the agent's last words\n${agentLog.trimEnd()}\n---`);
  console.error(`FAILED at "${current}": ${error.message}`);
} finally {
  clearTimeout(limit);
  await stopAgent();
  await browser?.close();
}
process.exit(code);

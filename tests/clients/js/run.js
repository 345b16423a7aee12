// Runs the script of a test with what a page would find: node run.js PACKAGE SCRIPT SERVER_URL [ARGUMENT...]
//
// PACKAGE is imjoy-rpc, hypha-rpc, or hypha, our own client. A script is the body of an asynchronous function. Its
// process ends well when the function does, and no promise was rejected that nobody looked at. With imjoy-rpc neither
// may the client have warned, nor a text frame have come: this generation is never sent one (protocol.md 1.2). hypha-rpc
// warns of each connection that ends.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");
const WebSocket = require("ws");

const faults = [];
const [library, script, url, ...args] = process.argv.slice(2);
const isLegacy = library === "imjoy-rpc";
const OWN = path.join(__dirname, "../../../hypha/web/assets/hypha-rpc-websocket.js");
const sockets = [];

/** Knows whose it is, by the first message of a modern client, and that imjoy-rpc may get no text. */
class ObservedWebSocket extends WebSocket {
  constructor(...parameters) {
    super(...parameters);
    sockets.push(this);
    if (isLegacy) this.on("message", (data, isBinary) => isBinary || faults.push(`a text frame: ${data}`));
  }

  send(data, ...more) {
    if (!isLegacy) this.clientId ??= JSON.parse(data).client_id;
    super.send(data, ...more);
  }
}

// What the client takes for granted and Node lacks.
Object.assign(globalThis, { WebSocket: ObservedWebSocket, ImageData: class ImageData {} });

const { hyphaWebsocketClient } = require(library === "hypha" ? OWN : library);

if (isLegacy) console.warn = (...words) => faults.push(`a warning: ${words.join(" ")}`);
process.on("unhandledRejection", (reason) => faults.push(`unhandled: ${reason}`));

/** Wait until `condition()` is true, or a promise of it. The deadline is the test's. */
async function until(condition) {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 10));
}

/** The websocket of a client of the modern kind. */
function socketOf(server) {
  return sockets.findLast(({ clientId }) => clientId === server.config.client_id);
}

/** A promise of the moment in which a client of the modern kind is gone for good. */
async function ended(server) {
  if (library === "hypha-rpc") return until(() => !server.rpc._connection);
  return new Promise((resolve) => server.on("disconnected", ({ reconnecting }) => reconnecting || resolve()));
}

/** End a client of the modern kind without a goodbye; ours must have been told `reconnect: false`. */
function kill(server) {
  if (library === "hypha-rpc") server.rpc._connection._closed = true; // so that it does not come back
  socketOf(server).terminate();
}

/** Cut the connection as a lost network does, once the client has the token to come back with. */
async function cut(server) {
  const connection = server.rpc._connection;
  await until(() => connection._reconnection_token);
  const socket = connection._websocket;
  const closed = new Promise((resolve) => socket.once("close", resolve));
  socket.terminate();
  assert.equal(await closed, 1006);
}

Object.assign(globalThis, {
  assert,
  url,
  args,
  until,
  cut,
  faults,
  library,
  socketOf,
  ended,
  kill,
  client: hyphaWebsocketClient,
  connectToServer: hyphaWebsocketClient.connectToServer,
  connect: (config) => hyphaWebsocketClient.connectToServer({ server_url: url, ...config }),
});

function end(error) {
  for (const fault of error ? [error, ...faults] : faults) console.error(fault);
  process.exit(error || faults.length ? 1 : 0);
}

const body = fs.readFileSync(script, "utf8");
const main = vm.runInThisContext(`(async () => {${body}\n})`, { filename: script });
main().then(() => end(), end);

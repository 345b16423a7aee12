// Reads msgpack values, one in each line, in hexadecimal; writes each as our client for JavaScript writes it, or "no" and
// why it cannot be read or written.
"use strict";

const path = require("node:path");
const readline = require("node:readline");
const { msgpack } = require(path.join(__dirname, "../../../hypha/web/assets/hypha-rpc-websocket.js"));

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  try {
    console.log(Buffer.from(msgpack.encode(msgpack.decode(Buffer.from(line, "hex")))).toString("hex"));
  } catch (error) {
    console.log(`no ${error}`);
  }
});

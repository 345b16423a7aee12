"""The page in which an app runs. It holds the source and no secret: token and names are handed to it in the browser."""

from __future__ import annotations

import json
from html import escape
from string import Template

from hypha.apps.source import Source

#: The client library, as the page finds it from ``/apps/{page}``.
CLIENT_SCRIPT = "../assets/hypha-rpc-websocket.js"
#: Where Python for the browser comes from; an app of the type web-python needs the Internet.
PYODIDE = "https://cdn.jsdelivr.net/pyodide/v0.27.7/full/"

#: An origin of its own: the page is no part of the server for whoever opens it, nor of another app.
HEADERS = {
    "Content-Security-Policy": "sandbox allow-scripts; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>$name</title>
$links
<style>$style</style>
$window
<script id="hypha-app" type="application/json">$app</script>
<script src="$client"></script>
<script>$script</script>
</html>
""")

_SCRIPT = r"""
  "use strict";

  // Runs in the page or in its worker: connects, loads what is required, runs the source, and waits for what it offers.
  async function runHyphaApp(config, app) {
    const api = await hyphaWebsocketClient.connectToServer(config);
    const offered = [];
    api.export ??= (service) => api.registerService({ ...service, id: "default" });
    for (const name of ["export", "registerService", "register_service"]) {
      const offer = api[name];
      if (!offer) continue;
      api[name] = (...args) => {
        const done = Promise.resolve(offer.apply(api, args));
        done.catch(() => {}); // who has called learns it, and so does whoever waits below
        offered.push(done);
        return done;
      };
    }
    for (const address of app.requirements) {
      if (typeof importScripts === "function") {
        importScripts(address);
      } else if (address.endsWith(".css")) {
        document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: address }));
      } else {
        await new Promise((resolve, reject) => {
          const script = Object.assign(document.createElement("script"), { src: address, onload: resolve });
          script.onerror = () => reject(new Error("the required script " + address + " cannot be loaded"));
          document.head.append(script);
        });
      }
    }
    const AsyncFunction = (async () => {}).constructor;
    await new AsyncFunction("api", app.code + "\n//# sourceURL=app.js")(api);
    for (let index = 0; index < offered.length; index += 1) await offered[index];
  }

  async function runPythonHyphaApp(config, app) {
    try {
      importScripts(app.pyodide + "pyodide.js");
    } catch {
      throw new Error("Pyodide cannot be loaded from " + app.pyodide +
        ": an app of the type web-python needs it, and therefore a server with a way to the Internet");
    }
    const pyodide = await loadPyodide({ indexURL: app.pyodide });
    await pyodide.loadPackage("micropip");
    await pyodide.pyimport("micropip").install(["hypha-rpc", ...app.requirements]);
    pyodide.globals.set("_config", JSON.stringify(config));
    pyodide.globals.set("_code", app.code);
    await pyodide.runPythonAsync(`
import inspect, json
from hypha_rpc import connect_to_server
from pyodide.code import eval_code_async
_api, _offered = await connect_to_server(json.loads(_config)), []
class Api:
    def __getattr__(self, name):
        return getattr(_api, name)
    def __getitem__(self, name):
        return _api[name]
    def export(self, service):
        if not isinstance(service, dict):
            names = [name for name in dir(service) if not name.startswith("_")]
            service = {name: getattr(service, name) for name in names}
        import asyncio
        offered = asyncio.ensure_future(_api.register_service({**service, "id": "default"}))
        _offered.append(offered)
        return offered
import sys, types
api = Api()
sys.modules["imjoy"] = types.SimpleNamespace(api=api)
await eval_code_async(_code, {"api": api, "__name__": "app"}, filename="app.py")
for _one in _offered:
    await _one
`);
  }

  function runHyphaWorker(config, app, run) {
    const client = new URL(document.querySelector("script[src]").src).href;
    const text = `
      self.window = self;
      importScripts(${JSON.stringify(client)});
      const run = ${run};
      onmessage = async (event) => {
        onmessage = null;
        try {
          await run(...event.data);
          postMessage({});
        } catch (error) {
          postMessage({ error: String(error?.stack ?? error) });
        }
      };`;
    const worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));
    return new Promise((resolve, reject) => {
      worker.onmessage = (event) => {
        worker.onmessage = null;
        event.data.error === undefined ? resolve() : reject(new Error(event.data.error));
      };
      worker.onerror = (event) => reject(new Error(event.message));
      worker.postMessage([config, app]);
    });
  }

  function startHyphaApp(config) {
    const app = JSON.parse(document.getElementById("hypha-app").textContent);
    if (typeof hyphaWebsocketClient === "undefined") throw new Error("the client library was not loaded");
    if (app.kind === "window") return runHyphaApp(config, app);
    return runHyphaWorker(config, app, app.kind === "web-worker" ? runHyphaApp : runPythonHyphaApp);
  }
"""


def page(source: Source) -> str:
    """The page of an app. What it holds of HTML is the app's own business: it is sandboxed with it."""
    app = {"kind": source.kind, "code": source.code, "requirements": source.requirements, "pyodide": PYODIDE}
    return _PAGE.substitute(
        name=escape(source.name),
        links="\n".join(f'<link rel="stylesheet" href="{escape(link)}">' for link in source.links),
        style=source.style,
        window=source.window,
        # Neither the end of the script nor a comment can stand in it.
        app=json.dumps(app).replace("<", "\\u003c"),
        client=CLIENT_SCRIPT,
        script=_SCRIPT,
    )

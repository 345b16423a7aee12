"""The page in which an app runs. It holds the source and no secret: token and names are handed to it in the browser."""

from __future__ import annotations

import json
from html import escape
from string import Template

from hypha.apps.python import Pyodide
from hypha.apps.source import Source

#: The client library, as the page finds it from ``/apps/{page}``.
CLIENT_SCRIPT = "../assets/hypha-rpc-websocket.js"

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
    const { loadPyodide } = await import(app.pyodide + "pyodide.mjs").catch((error) => {
      throw new Error("Pyodide cannot be loaded from " + app.pyodide + ": an app of the type web-python needs it, " +
        "from a static mount /pyodide or from the Internet; " + error.message);
    });
    const pyodide = await loadPyodide({ indexURL: app.pyodide });
    await pyodide.loadPackage(app.wheels.map((name) => app.pyodide + name));
    const missing = pyodide.runPython(`
import importlib.metadata, json
def _is_missing(name):
    try:
        importlib.metadata.version(name)
    except Exception:  # also for what is no name but an address, or a name with a version
        return True
    return False
json.dumps([name for name in json.loads(_wanted) if _is_missing(name)])
`, { globals: pyodide.toPy({ _wanted: JSON.stringify(["hypha-rpc", ...app.requirements]) }) });
    if (missing !== "[]") {
      await pyodide.loadPackage("micropip");
      await pyodide.pyimport("micropip").install(JSON.parse(missing));
    }
    pyodide.globals.set("_config", JSON.stringify(config));
    pyodide.globals.set("_code", app.code);
    await pyodide.runPythonAsync(`
import asyncio, json, sys, types
import hypha_rpc
from pyodide.code import eval_code_async
_api, _offered = await hypha_rpc.connect_to_server(json.loads(_config)), []
class Api:
    def __getattr__(self, name):
        return getattr(_api, name)
    def __getitem__(self, name):
        return _api[name]
    def export(self, service, config=None):
        service = service() if isinstance(service, type) else service
        if not isinstance(service, dict):
            names = [name for name in dir(service) if not name.startswith("_")]
            service = {name: getattr(service, name) for name in names}
        if config is not None:
            service = {**service, "config": config}
        offered = asyncio.ensure_future(_api.register_service({**service, "id": "default"}))
        _offered.append(offered)
        return offered
api = hypha_rpc.api = Api()
for _name in ("imjoy", "imjoy_rpc"):
    sys.modules[_name] = types.SimpleNamespace(api=api)
await eval_code_async(_code, {"api": api, "__name__": "app"}, filename="app.py")
for _one in _offered:
    await _one
`);
  }

  function runHyphaWorker(config, app, run) {
    // Pyodide runs in modules alone, and the client for JavaScript is no module. A page of an origin that is nobody's
    // can make a worker that is a module of a data: address only, which is so long that errors must not name it. What
    // Python has to say in full is in the console.
    const isModule = run === runPythonHyphaApp;
    const client = new URL(document.querySelector("script[src]").src).href;
    const text = `
      self.window = self;
      ${isModule ? "" : `importScripts(${JSON.stringify(client)});`}
      const run = ${run};
      onmessage = async (event) => {
        onmessage = null;
        try {
          await run(...event.data);
          postMessage({});
        } catch (error) {
          postMessage({ error: String(${isModule ? "error" : "error?.stack ?? error"}) });
        }
      };`;
    const address = isModule
      ? "data:text/javascript," + encodeURIComponent(text)
      : URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    const worker = new Worker(address, { type: isModule ? "module" : "classic" });
    return new Promise((resolve, reject) => {
      worker.onmessage = (event) => {
        worker.onmessage = null;
        const { error } = event.data;
        if (error === undefined) return resolve();
        if (isModule) console.error(error);
        reject(new Error(isModule ? error.trim().split("\n").pop() : error));
      };
      worker.onerror = (event) => reject(new Error(event.message));
      worker.postMessage([config, app]);
    });
  }

  function startHyphaApp(config) {
    const app = JSON.parse(document.getElementById("hypha-app").textContent);
    if (typeof hyphaWebsocketClient === "undefined") throw new Error("the client library was not loaded");
    app.pyodide = new URL(app.pyodide, location.href).href;
    if (app.kind === "window") return runHyphaApp(config, app);
    return runHyphaWorker(config, app, app.kind === "web-worker" ? runHyphaApp : runPythonHyphaApp);
  }
"""


def page(source: Source, python: Pyodide) -> str:
    """The page of an app. What it holds of HTML is the app's own business: it is sandboxed with it."""
    app = {
        "kind": source.kind,
        "code": source.code,
        "requirements": source.requirements,
        "pyodide": python.url,
        "wheels": python.wheels,
    }
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

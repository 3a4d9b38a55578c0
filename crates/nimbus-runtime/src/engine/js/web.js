// The web APIs of actions, taken from Deno's extensions and put where the web has them (convex.md 5.8). It runs
// when the snapshot is made. Knows no host: what an action may ask comes later, with common.js.
import { core, internals } from "ext:core/mod.js";

// Fetch asks whether it is traced. It is not.
const nothing = () => {};
internals.__telemetry = { TRACING_ENABLED: false, PROPAGATORS: [], DID_NOT_ENTER: undefined, builtinTracer: nothing, enterSpan: nothing, exitSpan: nothing };
internals.__telemetryUtil = { updateSpanFromClientResponse: nothing, updateSpanFromError: nothing, updateSpanFromRequest: nothing };

const load = (name) => core.loadExtScript(`ext:${name}`);
const hidden = (name, value) => Object.defineProperty(globalThis, name, { value, writable: true, enumerable: false, configurable: true });
const expose = (script, names) => {
  for (const name of names) {
    if (script[name] === undefined) throw new Error(`the extension has no ${name}`);
    hidden(name, script[name]);
  }
};

const event = load("deno_web/02_event.js");
event.saveGlobalThisReference(globalThis);
expose(event, ["Event", "EventTarget", "CustomEvent", "ErrorEvent", "CloseEvent", "MessageEvent", "ProgressEvent", "PromiseRejectionEvent"]);
expose(load("deno_web/00_url.js"), ["URL", "URLSearchParams"]);
expose(load("deno_web/01_urlpattern.js"), ["URLPattern"]);
expose(load("deno_web/01_dom_exception.js"), ["DOMException"]);
expose(load("deno_web/02_structured_clone.js"), ["structuredClone"]);
expose(load("deno_web/02_timers.js"), ["setTimeout", "clearTimeout", "setInterval", "clearInterval"]);
expose(load("deno_web/03_abort_signal.js"), ["AbortController", "AbortSignal"]);
expose(load("deno_web/05_base64.js"), ["atob", "btoa"]);
expose(load("deno_web/06_streams.js"), [
  "ByteLengthQueuingStrategy", "CountQueuingStrategy", "ReadableStream", "ReadableStreamDefaultReader", "ReadableStreamBYOBReader",
  "ReadableByteStreamController", "ReadableStreamBYOBRequest", "ReadableStreamDefaultController", "TransformStream",
  "TransformStreamDefaultController", "WritableStream", "WritableStreamDefaultController", "WritableStreamDefaultWriter",
]);
expose(load("deno_web/08_text_encoding.js"), ["TextDecoder", "TextDecoderStream", "TextEncoder", "TextEncoderStream"]);
expose(load("deno_web/09_file.js"), ["Blob", "File"]);
expose(load("deno_web/10_filereader.js"), ["FileReader"]);
expose(load("deno_web/14_compression.js"), ["CompressionStream", "DecompressionStream"]);
const performance = load("deno_web/15_performance.js");
expose(performance, ["Performance", "PerformanceEntry", "PerformanceMark", "PerformanceMeasure", "performance"]);
const crypto = load("deno_crypto/00_crypto.js");
expose(crypto, ["Crypto", "CryptoKey", "SubtleCrypto"]);
// Made at its first use: it must not be in the snapshot, since nothing random may be.
Object.defineProperty(globalThis, "crypto", { get: () => crypto.crypto, enumerable: false, configurable: true });
expose(load("deno_fetch/20_headers.js"), ["Headers"]);
expose(load("deno_fetch/21_formdata.js"), ["FormData"]);
expose(load("deno_fetch/23_request.js"), ["Request"]);
expose(load("deno_fetch/23_response.js"), ["Response"]);
expose(load("deno_fetch/26_fetch.js"), ["fetch"]);
hidden("queueMicrotask", (job) => {
  if (typeof job !== "function") throw new TypeError("queueMicrotask takes a function");
  // An error thrown in it ends the function, as any that nobody handles.
  Promise.resolve().then(() => void job());
});

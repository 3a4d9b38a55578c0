// The web APIs of queries and mutations, which have neither network nor time: URL, text codecs, events, cloning.
// It is given the builtins and the host's functions. Actions have the real ones from extensions instead. What would
// give away the host or the real clock follows own.js; a function that breaks `Array` breaks its own `URL`.
((globalThis, own, host) => {
  "use strict";
  const { Array, ArrayBuffer, Date, Error, Map, Math, Object, Promise, RegExp, Set, String, Symbol, TypeError, RangeError, Uint8Array } = globalThis;

  const { hidden } = own;
  const expose = (all) => {
    const names = own.keys(all);
    for (let at = 0; at < names.length; at++) hidden(globalThis, names[at], all[names[at]]);
  };

  // The clock and chance, which stand still and follow a seed.
  const RealDate = Date;
  function FrozenDate(...args) {
    if (new.target === undefined) return own.dateShown(new RealDate(host.now()));
    return own.construct(RealDate, args.length === 0 ? [host.now()] : args, new.target);
  }
  own.define(FrozenDate, "name", { value: "Date", configurable: true });
  own.define(FrozenDate, "length", { value: 7, configurable: true });
  FrozenDate.prototype = RealDate.prototype;
  own.define(FrozenDate, "prototype", { writable: false });
  hidden(RealDate.prototype, "constructor", FrozenDate);
  hidden(FrozenDate, "UTC", RealDate.UTC);
  hidden(FrozenDate, "parse", RealDate.parse);
  hidden(FrozenDate, "now", { now() { return host.now(); } }.now);
  hidden(globalThis, "Date", FrozenDate);
  hidden(Math, "random", { random() { return host.random(); } }.random);
  const formats = globalThis.Intl?.DateTimeFormat?.prototype;
  if (formats !== undefined) {
    const toParts = own.uncurry(formats.formatToParts);
    hidden(formats, "formatToParts", { formatToParts(date) { return toParts(this, date === undefined ? host.now() : date); } }.formatToParts);
    const format = own.getter(formats, "format");
    own.define(formats, "format", { get: { format() {
      const real = format(this);
      return (date) => real(date === undefined ? host.now() : date);
    } }.format, enumerable: false, configurable: true });
  }
  hidden(globalThis, "performance", own.freeze({ now: () => host.clock(), timeOrigin: 0, mark() {}, measure() {} }));

  const refused = (name) => () => {
    throw new own.Error(`Can't use ${name}() in queries and mutations. Please consider using an action. See https://docs.convex.dev/functions/actions for more details.`);
  };
  expose({ fetch: refused("fetch"), setTimeout: refused("setTimeout"), setInterval: refused("setInterval"), setImmediate: refused("setImmediate"), clearTimeout() {}, clearInterval() {} });
  hidden(globalThis, "crypto", own.freeze({
    getRandomValues: refused("crypto.getRandomValues"),
    randomUUID: refused("crypto.randomUUID"),
    get subtle() { return refused("crypto.subtle")(); },
  }));
  const then = own.uncurry(Promise.prototype.then);
  hidden(globalThis, "queueMicrotask", { queueMicrotask(job) {
    if (typeof job !== "function") throw new TypeError("queueMicrotask takes a function");
    const now = new Promise((done) => done());
    // Without one of its own, `then` would look for the constructor of its result in the prototype.
    own.define(now, "constructor", { value: undefined });
    // An error thrown in it ends the function, as any that nobody handles.
    then(now, () => void job());
  } }.queueMicrotask);

  // DOMException, events and cancellation.
  const CODES = { IndexSizeError: 1, NotFoundError: 8, NotSupportedError: 9, InvalidStateError: 11, SyntaxError: 12, InvalidAccessError: 15, AbortError: 20, QuotaExceededError: 22, TimeoutError: 23, DataCloneError: 25, InvalidCharacterError: 5 };
  class DOMException extends Error {
    #name;
    constructor(message = "", name = "Error") {
      super(message);
      this.#name = `${name}`;
    }
    get name() { return this.#name; }
    get code() { return CODES[this.#name] ?? 0; }
  }
  class Event {
    #type; #init; #stopped = false; #prevented = false;
    target = null; currentTarget = null;
    constructor(type, init = {}) { this.#type = `${type}`; this.#init = init ?? {}; }
    get type() { return this.#type; }
    get bubbles() { return !!this.#init.bubbles; }
    get cancelable() { return !!this.#init.cancelable; }
    get composed() { return !!this.#init.composed; }
    get defaultPrevented() { return this.#prevented; }
    get timeStamp() { return 0; }
    preventDefault() { if (this.cancelable) this.#prevented = true; }
    stopPropagation() {}
    stopImmediatePropagation() { this.#stopped = true; }
    static stopped(event) { return event.#stopped; }
  }
  const wasStopped = Event.stopped;
  delete Event.stopped;
  class CustomEvent extends Event {
    #detail;
    constructor(type, init = {}) { super(type, init); this.#detail = init?.detail ?? null; }
    get detail() { return this.#detail; }
  }
  class EventTarget {
    #listeners = new Map();
    addEventListener(type, listener, options) {
      if (listener === null || listener === undefined) return;
      const all = this.#listeners.get(`${type}`) ?? [];
      if (all.some((l) => l.listener === listener)) return;
      this.#listeners.set(`${type}`, [...all, { listener, once: typeof options === "object" && !!options?.once }]);
    }
    removeEventListener(type, listener) {
      const all = this.#listeners.get(`${type}`) ?? [];
      this.#listeners.set(`${type}`, all.filter((l) => l.listener !== listener));
    }
    dispatchEvent(event) {
      event.target = event.currentTarget = this;
      for (const { listener, once } of this.#listeners.get(event.type) ?? []) {
        if (once) this.removeEventListener(event.type, listener);
        if (typeof listener === "function") listener.call(this, event);
        else listener.handleEvent(event);
        if (wasStopped(event)) break;
      }
      const own = this[`on${event.type}`];
      if (typeof own === "function") own.call(this, event);
      return !event.defaultPrevented;
    }
  }
  const MAKE = Symbol("make");
  class AbortSignal extends EventTarget {
    #aborted = false; #reason; onabort = null;
    constructor(make) { super(); if (make !== MAKE) throw new TypeError("Illegal constructor"); }
    get aborted() { return this.#aborted; }
    get reason() { return this.#reason; }
    throwIfAborted() { if (this.#aborted) throw this.#reason; }
    static abort(reason) { const signal = new AbortSignal(MAKE); AbortSignal.#fire(signal, reason); return signal; }
    static timeout() { return refused("AbortSignal.timeout")(); }
    static any(signals) {
      const made = new AbortSignal(MAKE);
      for (const signal of signals) {
        if (signal.aborted) { AbortSignal.#fire(made, signal.reason); break; }
        signal.addEventListener("abort", () => AbortSignal.#fire(made, signal.reason), { once: true });
      }
      return made;
    }
    static #fire(signal, reason) {
      if (signal.#aborted) return;
      signal.#aborted = true;
      signal.#reason = reason === undefined ? new DOMException("The signal has been aborted", "AbortError") : reason;
      signal.dispatchEvent(new Event("abort"));
    }
    static [MAKE](signal, reason) { AbortSignal.#fire(signal, reason); }
  }
  const fire = AbortSignal[MAKE];
  delete AbortSignal[MAKE];
  class AbortController {
    #signal = new AbortSignal(MAKE);
    get signal() { return this.#signal; }
    abort(reason) { fire(this.#signal, reason); }
  }
  expose({ DOMException, Event, CustomEvent, EventTarget, AbortSignal, AbortController });

  // Text and base64.
  function isLow(text, at) {
    const code = own.charCode(text, at);
    return code >= 0xdc00 && code < 0xe000;
  }
  class TextEncoder {
    get encoding() { return "utf-8"; }
    encode(input = "") { return new Uint8Array(host.encode(own.wellFormed(`${input}`))); }
    encodeInto(input, target) {
      let read = 0, written = 0;
      const text = `${input}`;
      while (read < text.length) {
        const code = own.charCode(text, read);
        const character = own.slice(text, read, read + (code >= 0xd800 && code < 0xdc00 && isLow(text, read + 1) ? 2 : 1));
        const bytes = new Uint8Array(host.encode(own.wellFormed(character)));
        if (written + own.bytesLength(bytes) > own.bytesLength(target)) break;
        own.bytesSet(target, bytes, written);
        written += own.bytesLength(bytes);
        read += character.length;
      }
      return { read, written };
    }
  }
  const UTF8 = { __proto__: null, "utf-8": true, utf8: true, "unicode-1-1-utf-8": true, unicode11utf8: true, unicode20utf8: true, "x-unicode20utf8": true };
  class TextDecoder {
    #fatal; #ignoreBOM; #rest = new Uint8Array(0);
    constructor(label = "utf-8", options = {}) {
      if (UTF8[own.toLowerCase(own.trim(`${label}`))] !== true) throw new RangeError(`TextDecoder of queries and mutations knows utf-8 only, not ${label}`);
      this.#fatal = !!options.fatal;
      this.#ignoreBOM = !!options.ignoreBOM;
    }
    get encoding() { return "utf-8"; }
    get fatal() { return this.#fatal; }
    get ignoreBOM() { return this.#ignoreBOM; }
    decode(input, options = {}) {
      let bytes = input === undefined ? new Uint8Array(0) : ArrayBuffer.isView(input)
        ? new Uint8Array(input.buffer, input.byteOffset, input.byteLength) : new Uint8Array(input);
      if (this.#rest.length > 0) {
        const joined = new Uint8Array(this.#rest.length + bytes.length);
        joined.set(this.#rest);
        joined.set(bytes, this.#rest.length);
        bytes = joined;
      }
      this.#rest = new Uint8Array(0);
      if (options.stream) {
        const cut = incomplete(bytes);
        this.#rest = bytes.slice(bytes.length - cut);
        bytes = bytes.slice(0, bytes.length - cut);
      }
      const text = host.decode(bytes.slice().buffer, this.#fatal);
      if (text === undefined) throw new TypeError("The encoded data was not valid utf-8");
      return !this.#ignoreBOM && text.startsWith("\ufeff") ? text.slice(1) : text;
    }
  }
  // How many bytes at the end begin a character that is not all there.
  function incomplete(bytes) {
    for (let back = 1; back <= Math.min(3, bytes.length); back++) {
      const byte = bytes[bytes.length - back];
      if (byte < 0x80) return 0;
      if (byte >= 0xc0) return (byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2) > back ? back : 0;
    }
    return 0;
  }
  const latin1 = (text) => {
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) {
      const code = own.charCode(text, i);
      if (code > 255) throw new DOMException("The string contains characters outside of the Latin1 range", "InvalidCharacterError");
      bytes[i] = code;
    }
    return bytes;
  };
  expose({
    TextEncoder,
    TextDecoder,
    btoa(input) { return host.toBase64(own.bufferOf(latin1(`${input}`))); },
    atob(input) {
      const bytes = host.fromBase64(`${input}`);
      if (bytes === undefined) throw new DOMException("The string is not correctly encoded base64", "InvalidCharacterError");
      const all = new Uint8Array(bytes);
      let text = "";
      for (let at = 0; at < own.bytesLength(all); at++) text += own.fromCharCode(all[at]);
      return text;
    },
  });

  // URLs.
  const PARTS = ["href", "protocol", "username", "password", "host", "hostname", "port", "pathname", "search", "hash", "origin"];
  class URLSearchParams {
    #pairs = []; #changed = () => {};
    constructor(init = "", changed) {
      if (typeof changed === "function") this.#changed = changed;
      if (init === null || init === undefined) init = "";
      if (typeof init === "object" || typeof init === "function") {
        const pairs = typeof init[Symbol.iterator] === "function" ? [...init] : Object.keys(init).map((name) => [name, init[name]]);
        for (const pair of pairs) {
          const [name, value, ...rest] = [...pair];
          if (value === undefined || rest.length > 0) throw new TypeError("a query pair has a name and a value");
          this.#pairs.push([`${name}`, `${value}`]);
        }
      } else {
        const text = `${init}`;
        this.#pairs = host.parseForm((text.startsWith("?") ? text.slice(1) : text).toWellFormed());
      }
    }
    get size() { return this.#pairs.length; }
    append(name, value) { this.#pairs.push([`${name}`, `${value}`]); this.#changed(`${this}`); }
    delete(name, value) {
      this.#pairs = this.#pairs.filter(([n, v]) => n !== `${name}` || (value !== undefined && v !== `${value}`));
      this.#changed(`${this}`);
    }
    get(name) { return this.#pairs.find(([n]) => n === `${name}`)?.[1] ?? null; }
    getAll(name) { return this.#pairs.filter(([n]) => n === `${name}`).map(([, v]) => v); }
    has(name, value) { return this.#pairs.some(([n, v]) => n === `${name}` && (value === undefined || v === `${value}`)); }
    set(name, value) {
      const at = this.#pairs.findIndex(([n]) => n === `${name}`);
      if (at < 0) this.#pairs.push([`${name}`, `${value}`]);
      else {
        this.#pairs[at][1] = `${value}`;
        this.#pairs = this.#pairs.filter(([n], i) => i <= at || n !== `${name}`);
      }
      this.#changed(`${this}`);
    }
    sort() { this.#pairs.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0)); this.#changed(`${this}`); }
    forEach(job, self) { for (const [name, value] of this.#pairs) job.call(self, value, name, this); }
    *entries() { for (const [name, value] of this.#pairs) yield [name, value]; }
    *keys() { for (const [name] of this.#pairs) yield name; }
    *values() { for (const [, value] of this.#pairs) yield value; }
    [Symbol.iterator]() { return this.entries(); }
    toString() { return host.formatForm(this.#pairs.flat().map((part) => part.toWellFormed())); }
  }
  class URL {
    #parts; #query;
    constructor(url, base) {
      this.#parts = host.parseUrl(`${url}`.toWellFormed(), base === undefined ? undefined : `${base}`.toWellFormed());
      if (this.#parts === undefined) throw new TypeError(`Invalid URL: '${url}'`);
    }
    static canParse(url, base) { return host.parseUrl(`${url}`.toWellFormed(), base === undefined ? undefined : `${base}`.toWellFormed()) !== undefined; }
    static parse(url, base) { return URL.canParse(url, base) ? new URL(url, base) : null; }
    get searchParams() {
      this.#query ??= new URLSearchParams(this.search, (text) => { this.#parts = host.setUrl(this.#parts[0], "search", text) ?? this.#parts; });
      return this.#query;
    }
    toString() { return this.href; }
    toJSON() { return this.href; }
    static {
      PARTS.forEach((name, at) => Object.defineProperty(URL.prototype, name, {
        get() { return this.#parts[at]; },
        set: name === "origin" ? undefined : function (value) {
          const parts = host.setUrl(this.#parts[0], name, `${value}`.toWellFormed());
          if (parts === undefined && name === "href") throw new TypeError(`Invalid URL: '${value}'`);
          if (parts !== undefined) this.#parts = parts;
          this.#query = undefined;
        },
        enumerable: true,
        configurable: true,
      }));
    }
  }
  expose({ URL, URLSearchParams });

  // Cloning.
  const unclonable = (what) => { throw new DOMException(`${what} could not be cloned.`, "DataCloneError"); };
  function clone(value, seen) {
    if (typeof value === "function" || typeof value === "symbol") unclonable(String(value));
    if (value === null || typeof value !== "object") return value;
    if (seen.has(value)) return seen.get(value);
    const keep = (made) => { seen.set(value, made); return made; };
    if (value instanceof RealDate) return keep(new RealDate(value.getTime()));
    if (value instanceof RegExp) return keep(new RegExp(value.source, value.flags));
    if (value instanceof ArrayBuffer) return keep(value.slice(0));
    if (ArrayBuffer.isView(value)) {
      const buffer = clone(value.buffer, seen);
      const length = value.length ?? value.byteLength;
      return keep(new value.constructor(buffer, value.byteOffset, length));
    }
    if (value instanceof Map) {
      const made = keep(new Map());
      for (const [k, v] of [...value]) made.set(clone(k, seen), clone(v, seen));
      return made;
    }
    if (value instanceof Set) {
      const made = keep(new Set());
      for (const v of [...value]) made.add(clone(v, seen));
      return made;
    }
    if (value instanceof Error) {
      const make = { EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError }[value.name] ?? Error;
      const made = keep(Object.create(make.prototype));
      for (const name of ["message", "stack", "cause"]) if (Object.hasOwn(value, name)) hidden(made, name, clone(value[name], seen));
      return made;
    }
    if (value instanceof Promise || value instanceof globalThis.WeakMap || value instanceof globalThis.WeakSet) unclonable("#<Promise>");
    const made = keep(Array.isArray(value) ? new Array(value.length) : {});
    for (const name of Object.keys(value)) made[name] = clone(value[name], seen);
    return made;
  }
  expose({ structuredClone(value) { return clone(value, new Map()); } });
})

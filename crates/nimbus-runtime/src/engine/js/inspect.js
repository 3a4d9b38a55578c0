// Renders values as console lines show them, in the manner of Node's `util.inspect` with its defaults.
// Knows values only: no host, no console.
((globalThis) => {
  "use strict";
  const { Array, ArrayBuffer, BigInt, Date, Error, Function, JSON, Map, Number, Object, Promise, RegExp, Set, String, Symbol, WeakMap, WeakSet } = globalThis;
  const toString = Function.prototype.call.bind(Object.prototype.toString);
  const errorText = Function.prototype.call.bind(Error.prototype.toString);
  const dateText = Function.prototype.call.bind(Date.prototype.toISOString);
  const regexpText = Function.prototype.call.bind(RegExp.prototype.toString);
  const functionText = Function.prototype.call.bind(Function.prototype.toString);
  const LINE = 72;
  const MAX_ITEMS = 100;
  const MAX_STRING = 10000;
  const MAX_DEPTH = 2;
  const IDENTIFIER = /^[A-Za-z_$][\w$]*$/;

  function quote(text) {
    const mark = !text.includes("'") ? "'" : !text.includes('"') ? '"' : !text.includes("`") ? "`" : "'";
    const escaped = text.replace(/[\\\u0000-\u001f\u007f]/g, (c) =>
      c === "\n" ? "\\n" : c === "\t" ? "\\t" : c === "\r" ? "\\r" : c === "\b" ? "\\b" : c === "\f" ? "\\f"
        : c === "\\" ? "\\\\" : "\\x" + c.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0"));
    return mark + (mark === "'" ? escaped.replaceAll("'", "\\'") : escaped) + mark;
  }

  function string(text) {
    const rest = text.length - MAX_STRING;
    return rest > 0 ? `${quote(text.slice(0, MAX_STRING))}... ${rest} more character${rest > 1 ? "s" : ""}` : quote(text);
  }

  function primitive(value) {
    switch (typeof value) {
      case "string": return string(value);
      case "number": return Object.is(value, -0) ? "-0" : String(value);
      case "bigint": return `${value}n`;
      case "symbol": return value.toString();
      default: return String(value);
    }
  }

  // Own data only: no getter of the function's runs while a line is made.
  function property(object, key) {
    const found = Object.getOwnPropertyDescriptor(object, key);
    return found && "value" in found ? found.value : undefined;
  }

  function className(object) {
    for (let at = object; at !== null; at = Object.getPrototypeOf(at)) {
      const maker = property(at, "constructor");
      if (typeof maker === "function" && property(maker, "name")) return String(property(maker, "name"));
    }
    return null;
  }

  function prefix(object, usual, size) {
    const name = className(object);
    const shown = name === null ? `[${usual}: null prototype]` : name;
    const tag = object[Symbol.toStringTag];
    const tagged = typeof tag === "string" && tag !== "" && tag !== shown ? ` [${tag}]` : "";
    const counted = size === undefined ? "" : `(${size})`;
    return name === usual && !tagged && size === undefined ? "" : `${shown}${counted}${tagged} `;
  }

  function key(name) {
    if (typeof name === "symbol") return `[${name.toString()}]`;
    return IDENTIFIER.test(name) ? name : quote(name);
  }

  function entries(object, keys, state, depth) {
    return keys.map((name) => {
      const found = Object.getOwnPropertyDescriptor(object, name);
      const shown = found.get ? (found.set ? "[Getter/Setter]" : "[Getter]") : found.set ? "[Setter]"
        : value(found.value, state, depth + 1);
      return `${key(name)}: ${shown}`;
    });
  }

  function ownKeys(object) {
    const symbols = Object.getOwnPropertySymbols(object).filter((s) => Object.prototype.propertyIsEnumerable.call(object, s));
    return [...Object.keys(object), ...symbols];
  }

  function more(count) {
    const rest = count - MAX_ITEMS;
    return rest > 0 ? [`... ${rest} more item${rest > 1 ? "s" : ""}`] : [];
  }

  function join(head, open, items, close, depth) {
    if (items.length === 0) return `${head}${open}${close}`;
    const width = items.reduce((sum, item) => sum + item.length + 2, head.length + open.length);
    if (width <= LINE && !items.some((item) => item.includes("\n"))) return `${head}${open} ${items.join(", ")} ${close}`;
    const indent = "  ".repeat(depth + 1);
    return `${head}${open}\n${indent}${items.join(`,\n${indent}`)}\n${"  ".repeat(depth)}${close}`;
  }

  function error(object, state, depth) {
    const stack = object.stack;
    const text = typeof stack === "string" && stack !== "" ? stack : `[${errorText(object)}]`;
    const keys = ownKeys(object).filter((name) => name !== "stack" && name !== "message");
    if (object.cause !== undefined && !keys.includes("cause")) keys.push("cause");
    const shown = text.replaceAll("\n", `\n${"  ".repeat(depth)}`);
    return keys.length === 0 ? shown : join(`${shown} `, "{", keys.map((name) => {
      const label = name === "cause" ? "[cause]" : key(name);
      return `${label}: ${value(object[name], state, depth + 1)}`;
    }), "}", depth);
  }

  function fn(object) {
    const isClass = functionText(object).startsWith("class");
    const name = property(object, "name");
    if (isClass) return `[class ${name || "(anonymous)"}]`;
    const kind = className(object) ?? "Function";
    return name ? `[${kind}: ${String(name)}]` : `[${kind} (anonymous)]`;
  }

  function array(object, state, depth) {
    const items = [];
    const shown = Math.min(object.length, MAX_ITEMS);
    let holes = 0;
    const flush = () => {
      if (holes > 0) items.push(`<${holes} empty item${holes > 1 ? "s" : ""}>`);
      holes = 0;
    };
    for (let i = 0; i < shown; i++) {
      if (!Object.hasOwn(object, i)) { holes++; continue; }
      flush();
      items.push(value(property(object, i), state, depth + 1));
    }
    flush();
    items.push(...more(object.length));
    const extra = ownKeys(object).filter((name) => typeof name === "symbol" || !/^\d+$/.test(name));
    items.push(...entries(object, extra, state, depth));
    return join(prefix(object, "Array", className(object) === "Array" ? undefined : object.length), "[", items, "]", depth);
  }

  function bytes(buffer) {
    const all = new Uint8Array(buffer);
    const shown = Array.from(all.subarray(0, 50), (b) => b.toString(16).padStart(2, "0")).join(" ");
    const rest = all.length - 50;
    const tail = rest > 0 ? ` ... ${rest} more byte${rest > 1 ? "s" : ""}` : "";
    return `ArrayBuffer { [Uint8Contents]: <${shown}${tail}>, byteLength: ${all.length} }`;
  }

  function object(it, state, depth) {
    if (state.seen.includes(it)) return "[Circular *1]";
    if (typeof it === "function") {
      const keys = ownKeys(it);
      return keys.length === 0 ? fn(it) : join(`${fn(it)} `, "{", entries(it, keys, state, depth), "}", depth);
    }
    const kind = toString(it);
    if (it instanceof Error || kind === "[object Error]") return error(it, state, depth);
    if (it instanceof Date) return Number.isNaN(it.getTime()) ? "Invalid Date" : dateText(it);
    if (it instanceof RegExp) return regexpText(it);
    if (it instanceof ArrayBuffer) return bytes(it);
    if (depth > MAX_DEPTH) return Array.isArray(it) ? "[Array]" : `[${className(it) ?? "Object: null prototype"}]`;
    state.seen.push(it);
    try {
      if (Array.isArray(it)) return array(it, state, depth);
      if (ArrayBuffer.isView(it) && it.length !== undefined) {
        const items = Array.from(it.subarray(0, MAX_ITEMS), primitive);
        return join(prefix(it, "", it.length), "[", [...items, ...more(it.length)], "]", depth);
      }
      if (it instanceof Map) {
        const items = Array.from(it).slice(0, MAX_ITEMS).map(([k, v]) => `${value(k, state, depth + 1)} => ${value(v, state, depth + 1)}`);
        return join(prefix(it, "", it.size), "{", [...items, ...more(it.size)], "}", depth);
      }
      if (it instanceof Set) {
        const items = Array.from(it).slice(0, MAX_ITEMS).map((v) => value(v, state, depth + 1));
        return join(prefix(it, "", it.size), "{", [...items, ...more(it.size)], "}", depth);
      }
      if (it instanceof Promise) return "Promise { <pending> }";
      if (it instanceof WeakMap || it instanceof WeakSet) return `${className(it)} { <items unknown> }`;
      if (it instanceof Number || it instanceof String || it instanceof Boolean || it instanceof BigInt || it instanceof Symbol) {
        return `[${className(it)}: ${primitive(it.valueOf())}]`;
      }
      return join(prefix(it, "Object"), "{", entries(it, ownKeys(it), state, depth), "}", depth);
    } finally {
      state.seen.pop();
    }
  }

  function value(it, state, depth) {
    if (it === null || (typeof it !== "object" && typeof it !== "function")) return primitive(it);
    try {
      return object(it, state, depth);
    } catch {
      return "[Uninspectable]";
    }
  }

  return (it) => value(it, { seen: [] }, 0);
})(globalThis)

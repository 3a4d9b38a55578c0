// Renders values as console lines show them, in the manner of Node's `util.inspect` with its defaults.
// Knows values only: no host, no console. See own.js for how it is written.
((own) => {
  "use strict";
  const LINE = 72;
  const MAX_ITEMS = 100;
  const MAX_STRING = 10000;
  const MAX_DEPTH = 2;
  const HEX = "0123456789ABCDEF";
  const ESCAPES = { __proto__: null, 8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 92: "\\\\" };

  const has = (text, part) => own.indexOf(text, part) >= 0;
  const add = (list, item) => { list[list.length] = item; };

  function quote(text) {
    const mark = !has(text, "'") ? "'" : !has(text, '"') ? '"' : !has(text, "`") ? "`" : "'";
    let out = mark;
    let from = 0;
    for (let at = 0; at < text.length; at++) {
      const code = own.charCode(text, at);
      const marks = code === 39 && mark === "'";
      if (code > 31 && code !== 92 && code !== 127 && !marks) continue;
      const hex = `\\x${HEX[code >> 4]}${HEX[code & 15]}`;
      out += own.slice(text, from, at) + (marks ? "\\'" : ESCAPES[code] ?? hex);
      from = at + 1;
    }
    return out + own.slice(text, from) + mark;
  }

  function string(text) {
    const rest = text.length - MAX_STRING;
    return rest > 0 ? `${quote(own.slice(text, 0, MAX_STRING))}... ${rest} more character${rest > 1 ? "s" : ""}` : quote(text);
  }

  function primitive(value) {
    switch (typeof value) {
      case "string": return string(value);
      case "number": return own.is(value, -0) ? "-0" : `${value}`;
      case "bigint": return `${value}n`;
      case "symbol": return own.symbolText(value);
      default: return `${value}`;
    }
  }

  // Own data only: no getter of the function's runs while a line is made.
  function property(object, key) {
    const found = own.getOwnPropertyDescriptor(object, key);
    return found !== undefined && own.hasOwn(found, "value") ? found.value : undefined;
  }

  function inherited(object, key) {
    for (let at = object; at !== null; at = own.getPrototypeOf(at)) {
      const found = own.getOwnPropertyDescriptor(at, key);
      if (found !== undefined) return own.hasOwn(found, "value") ? found.value : undefined;
    }
    return undefined;
  }

  function className(object) {
    for (let at = object; at !== null; at = own.getPrototypeOf(at)) {
      const maker = property(at, "constructor");
      if (typeof maker !== "function") continue;
      const name = property(maker, "name");
      if (typeof name === "string" && name !== "") return name;
    }
    return null;
  }

  function prefix(object, usual, size) {
    const name = className(object);
    const shown = name === null ? `[${usual}: null prototype]` : name;
    const tag = inherited(object, own.tag);
    const tagged = typeof tag === "string" && tag !== "" && tag !== shown ? ` [${tag}]` : "";
    const counted = size === undefined ? "" : `(${size})`;
    return name === usual && tagged === "" && size === undefined ? "" : `${shown}${counted}${tagged} `;
  }

  function isIdentifier(name) {
    for (let at = 0; at < name.length; at++) {
      const code = own.charCode(name, at);
      const letter = (code >= 97 && code <= 122) || (code >= 65 && code <= 90) || code === 95 || code === 36;
      if (!letter && !(at > 0 && code >= 48 && code <= 57)) return false;
    }
    return name.length > 0;
  }

  function isIndex(name) {
    for (let at = 0; at < name.length; at++) {
      const code = own.charCode(name, at);
      if (code < 48 || code > 57) return false;
    }
    return name.length > 0;
  }

  function key(name) {
    if (typeof name === "symbol") return `[${own.symbolText(name)}]`;
    return isIdentifier(name) ? name : quote(name);
  }

  function addEntries(items, object, keys, state, depth) {
    for (let at = 0; at < keys.length; at++) {
      const found = own.getOwnPropertyDescriptor(object, keys[at]);
      if (found === undefined) continue;
      const shown = own.hasOwn(found, "value") ? value(found.value, state, depth + 1)
        : found.get === undefined ? "[Setter]" : found.set === undefined ? "[Getter]" : "[Getter/Setter]";
      add(items, `${key(keys[at])}: ${shown}`);
    }
  }

  function ownKeys(object, wanted = () => true) {
    const all = own.list();
    const names = own.keys(object);
    for (let at = 0; at < names.length; at++) if (wanted(names[at])) add(all, names[at]);
    const symbols = own.getOwnPropertySymbols(object);
    for (let at = 0; at < symbols.length; at++) if (own.isEnumerable(object, symbols[at])) add(all, symbols[at]);
    return all;
  }

  function addMore(items, count) {
    const rest = count - MAX_ITEMS;
    if (rest > 0) add(items, `... ${rest} more item${rest > 1 ? "s" : ""}`);
  }

  function joined(items, between) {
    let out = "";
    for (let at = 0; at < items.length; at++) out += at === 0 ? items[at] : between + items[at];
    return out;
  }

  function spaces(depth) {
    let out = "";
    for (let at = 0; at < depth; at++) out += "  ";
    return out;
  }

  function join(head, open, items, close, depth) {
    if (items.length === 0) return `${head}${open}${close}`;
    let width = head.length + open.length;
    let flat = true;
    for (let at = 0; at < items.length; at++) {
      width += items[at].length + 2;
      flat &&= !has(items[at], "\n");
    }
    if (flat && width <= LINE) return `${head}${open} ${joined(items, ", ")} ${close}`;
    const indent = spaces(depth + 1);
    return `${head}${open}\n${indent}${joined(items, `,\n${indent}`)}\n${spaces(depth)}${close}`;
  }

  function indented(text, depth) {
    let out = "";
    let from = 0;
    for (let at = own.indexOf(text, "\n"); at >= 0; at = own.indexOf(text, "\n", from)) {
      out += `${own.slice(text, from, at)}\n${spaces(depth)}`;
      from = at + 1;
    }
    return out + own.slice(text, from);
  }

  function error(object, state, depth) {
    // V8 makes the stack of an error when it is first read, through an accessor of its own.
    const stack = object.stack;
    const text = typeof stack === "string" && stack !== "" ? stack : `[${own.errorText(object)}]`;
    const keys = ownKeys(object, (name) => name !== "stack" && name !== "message" && name !== "cause");
    const items = own.list();
    addEntries(items, object, keys, state, depth);
    const cause = property(object, "cause");
    if (cause !== undefined) add(items, `[cause]: ${value(cause, state, depth + 1)}`);
    const shown = indented(text, depth);
    return items.length === 0 ? shown : join(`${shown} `, "{", items, "}", depth);
  }

  function fn(object) {
    const isClass = own.slice(own.functionText(object), 0, 5) === "class";
    const name = property(object, "name");
    const named = typeof name === "string" && name !== "";
    if (isClass) return `[class ${named ? name : "(anonymous)"}]`;
    const kind = className(object) ?? "Function";
    return named ? `[${kind}: ${name}]` : `[${kind} (anonymous)]`;
  }

  function array(object, state, depth) {
    const items = own.list();
    const shown = own.min(object.length, MAX_ITEMS);
    let holes = 0;
    for (let at = 0; at <= shown; at++) {
      if (at < shown && !own.hasOwn(object, at)) { holes++; continue; }
      if (holes > 0) add(items, `<${holes} empty item${holes > 1 ? "s" : ""}>`);
      holes = 0;
      if (at < shown) add(items, value(property(object, at), state, depth + 1));
    }
    addMore(items, object.length);
    addEntries(items, object, ownKeys(object, (name) => !isIndex(name)), state, depth);
    const size = className(object) === "Array" ? undefined : object.length;
    return join(prefix(object, "Array", size), "[", items, "]", depth);
  }

  function bytes(buffer) {
    const all = new own.Uint8Array(buffer);
    const length = own.bytesLength(all);
    const digits = "0123456789abcdef";
    let shown = "";
    for (let at = 0; at < length && at < 50; at++) {
      shown += `${at === 0 ? "" : " "}${digits[all[at] >> 4]}${digits[all[at] & 15]}`;
    }
    const rest = length - 50;
    const tail = rest > 0 ? ` ... ${rest} more byte${rest > 1 ? "s" : ""}` : "";
    return `ArrayBuffer { [Uint8Contents]: <${shown}${tail}>, byteLength: ${length} }`;
  }

  function view(it, depth) {
    const items = own.list();
    const length = own.bytesLength(it);
    for (let at = 0; at < length && at < MAX_ITEMS; at++) add(items, primitive(it[at]));
    addMore(items, length);
    return join(prefix(it, "", length), "[", items, "]", depth);
  }

  function collection(it, size, each, state, depth) {
    const items = own.list();
    each(it, (v, k) => {
      if (items.length >= MAX_ITEMS) return;
      const shown = value(v, state, depth + 1);
      add(items, it instanceof own.Map ? `${value(k, state, depth + 1)} => ${shown}` : shown);
    });
    addMore(items, size);
    return join(prefix(it, "", size), "{", items, "}", depth);
  }

  function boxed(it) {
    for (const name in own.unbox) {
      if (it instanceof own[name]) return `[${className(it)}: ${primitive(own.unbox[name](it))}]`;
    }
    return undefined;
  }

  function members(it, state, depth) {
    if (own.isArray(it)) return array(it, state, depth);
    if (own.isView(it) && own.viewKind(it) !== undefined) return view(it, depth);
    if (it instanceof own.Map) return collection(it, own.mapSize(it), own.mapEach, state, depth);
    if (it instanceof own.Set) return collection(it, own.setSize(it), own.setEach, state, depth);
    if (it instanceof own.Promise) return "Promise { <pending> }";
    if (it instanceof own.WeakMap || it instanceof own.WeakSet) return `${className(it)} { <items unknown> }`;
    const box = boxed(it);
    if (box !== undefined) return box;
    const items = own.list();
    addEntries(items, it, ownKeys(it), state, depth);
    return join(prefix(it, "Object"), "{", items, "}", depth);
  }

  function object(it, state, depth) {
    for (let at = 0; at < state.length; at++) if (state[at] === it) return "[Circular *1]";
    if (typeof it === "function") {
      const items = own.list();
      addEntries(items, it, ownKeys(it), state, depth);
      return items.length === 0 ? fn(it) : join(`${fn(it)} `, "{", items, "}", depth);
    }
    if (it instanceof own.Error) return error(it, state, depth);
    if (it instanceof own.Date) return own.isNaN(own.dateTime(it)) ? "Invalid Date" : own.dateText(it);
    if (it instanceof own.RegExp) return own.regexpText(it);
    if (it instanceof own.ArrayBuffer) return bytes(it);
    if (depth > MAX_DEPTH) return own.isArray(it) ? "[Array]" : `[${className(it) ?? "Object: null prototype"}]`;
    add(state, it);
    try {
      return members(it, state, depth);
    } finally {
      state.length--;
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

  return (it) => value(it, own.list(), 0);
})

// WebAssembly would give a way to memory that is shared, which nothing here may have. It runs in a realm that no code
// of a function has run in yet: V8 makes `WebAssembly` anew when it makes a realm from a snapshot.
((globalThis) => {
  "use strict";
  const { Object, TypeError } = globalThis;
  const memory = globalThis.WebAssembly?.Memory?.prototype;
  if (memory === undefined) return;
  const uncurry = Function.prototype.bind.bind(Function.prototype.call);
  const getter = (prototype, name) => uncurry(Object.getOwnPropertyDescriptor(prototype, name).get);
  const replace = (name, descriptor) => void Object.defineProperty(memory, name, { __proto__: null, enumerable: true, configurable: true, ...descriptor });
  const length = getter(globalThis.ArrayBuffer.prototype, "byteLength");
  const alone = (buffer) => {
    try { length(buffer); } catch { throw new TypeError("WebAssembly.Memory: memory cannot be shared"); }
    return buffer;
  };
  const buffer = getter(memory, "buffer");
  replace("buffer", { get: { buffer() { return alone(buffer(this)); } }.buffer });
  for (const name of ["toFixedLengthBuffer", "toResizableBuffer"]) {
    if (typeof memory[name] !== "function") continue;
    const real = uncurry(memory[name]);
    replace(name, { value: { [name]() { return alone(real(this)); } }[name], writable: true });
  }
})(globalThis)

// The builtins as they were before the function's code ran. Scripts of ours use these alone: code that replaced
// `Array.prototype.map`, an iterator or a setter on `Object.prototype` must neither run inside them nor be handed
// what is theirs. So: no spread, no `for…of`, no method of a prototype, no element written to a usual array.
((globalThis) => {
  "use strict";
  const { Array, ArrayBuffer, BigInt, Boolean, Date, Error, Function, JSON, Map, Number, Object, Promise, Reflect, RegExp, Set, String, Symbol, TypeError, RangeError, Uint8Array, WeakMap, WeakSet } = globalThis;
  const { defineProperty, freeze, getOwnPropertyDescriptor, getOwnPropertySymbols, getPrototypeOf, hasOwn, is, keys, setPrototypeOf } = Object;
  const { construct } = Reflect;
  const uncurry = Function.prototype.bind.bind(Function.prototype.call);
  const getter = (prototype, name) => uncurry(getOwnPropertyDescriptor(prototype, name).get);
  const TypedArray = getPrototypeOf(Uint8Array);

  const source = getter(RegExp.prototype, "source");
  const flag = (name) => getter(RegExp.prototype, name);
  const FLAGS = { __proto__: null, d: flag("hasIndices"), g: flag("global"), i: flag("ignoreCase"), m: flag("multiline"), s: flag("dotAll"), u: flag("unicode"), v: flag("unicodeSets"), y: flag("sticky") };

  return freeze({
    __proto__: null,
    Array, ArrayBuffer, BigInt, Boolean, Date, Error, Map, Number, Promise, RegExp, Set, String, Symbol, TypeError, RangeError, Uint8Array, WeakMap, WeakSet,
    isArray: Array.isArray, isView: ArrayBuffer.isView, parse: JSON.parse, min: globalThis.Math.min, isNaN: Number.isNaN, fromCharCode: String.fromCharCode,
    freeze, getOwnPropertyDescriptor, getOwnPropertySymbols, getPrototypeOf, hasOwn, is, keys, construct, uncurry, getter,
    // An array that inherits nothing: writing an element reaches no setter.
    list: () => setPrototypeOf([], null),
    hidden: (target, name, value) => void defineProperty(target, name, { __proto__: null, value, writable: true, enumerable: false, configurable: true }),
    define: (target, name, descriptor) => void defineProperty(target, name, setPrototypeOf(descriptor, null)),
    orphan: (object) => setPrototypeOf(object, null),
    toString: uncurry(Object.prototype.toString),
    isEnumerable: uncurry(Object.prototype.propertyIsEnumerable),
    functionText: uncurry(Function.prototype.toString),
    errorText: uncurry(Error.prototype.toString),
    dateText: uncurry(Date.prototype.toISOString),
    dateTime: uncurry(Date.prototype.getTime),
    dateShown: uncurry(Date.prototype.toString),
    regexpText: (it) => {
      // `toString` and `flags` would ask the replaceable accessors of the prototype.
      let flags = "";
      for (const letter in FLAGS) if (FLAGS[letter](it)) flags += letter;
      return `/${source(it)}/${flags}`;
    },
    symbolText: uncurry(Symbol.prototype.toString),
    charCode: uncurry(String.prototype.charCodeAt),
    indexOf: uncurry(String.prototype.indexOf),
    slice: uncurry(String.prototype.slice),
    toLowerCase: uncurry(String.prototype.toLowerCase),
    trim: uncurry(String.prototype.trim),
    wellFormed: uncurry(String.prototype.toWellFormed),
    mapGet: uncurry(Map.prototype.get),
    mapSet: uncurry(Map.prototype.set),
    mapHas: uncurry(Map.prototype.has),
    mapDelete: uncurry(Map.prototype.delete),
    mapEach: uncurry(Map.prototype.forEach),
    mapSize: getter(Map.prototype, "size"),
    setEach: uncurry(Set.prototype.forEach),
    setSize: getter(Set.prototype, "size"),
    bytesLength: getter(TypedArray.prototype, "length"),
    bytesSet: uncurry(TypedArray.prototype.set),
    viewKind: getter(TypedArray.prototype, globalThis.Symbol.toStringTag),
    bufferOf: getter(TypedArray.prototype, "buffer"),
    unbox: freeze({
      __proto__: null,
      Number: uncurry(Number.prototype.valueOf), String: uncurry(String.prototype.valueOf), Boolean: uncurry(Boolean.prototype.valueOf),
      BigInt: uncurry(BigInt.prototype.valueOf), Symbol: uncurry(Symbol.prototype.valueOf),
    }),
    tag: Symbol.toStringTag,
  });
})(globalThis)

// Stands in for Deno's TLS client of the same name: client certificates of `fetch` are not offered to functions.
(function () {
  return { loadTlsKeyPair: () => null };
})();

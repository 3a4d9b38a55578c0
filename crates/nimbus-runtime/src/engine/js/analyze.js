// Reads what an imported module declares (convex.md 4.5). It gets the module's namespace and its path and gives
// JSON text: what was found, or what is wrong. Knows the shape of the function objects and nothing else.
((namespace, path) => {
  "use strict";
  const IDENTIFIER = /^(?!_+$)[A-Za-z_][A-Za-z0-9_]{0,63}$/;
  class Wrong extends Error {
    constructor(code, message) { super(message); this.code = code; }
  }
  const text = (value, what) => {
    if (typeof value !== "string") throw new Wrong("InvalidExport", `${what} must be JSON text`);
    return value;
  };

  function describe(name, it) {
    const kinds = { isQuery: "query", isMutation: "mutation", isAction: "action" };
    const flags = Object.keys(kinds).filter((flag) => it[flag] === true);
    if (flags.length === 0 || it.isHttp === true) return undefined;
    if (flags.length > 1) throw new Wrong("InvalidFunction", `\`${name}\` says that it is ${flags.map((f) => kinds[f]).join(" and ")}`);
    if (!IDENTIFIER.test(name)) throw new Wrong("InvalidFunctionName", `\`${name}\` is no name for a function: letters, digits and underscores, at most 64`);
    if (it.isPublic === true && it.isInternal === true) throw new Wrong("InvalidFunction", `\`${name}\` says that it is public and internal`);
    const visibility = it.isPublic === true ? "public" : it.isInternal === true ? "internal" : undefined;
    const args = typeof it.exportArgs === "function" ? text(it.exportArgs(), `exportArgs of \`${name}\``) : undefined;
    const returns = typeof it.exportReturns === "function" ? text(it.exportReturns(), `exportReturns of \`${name}\``) : undefined;
    return { name, kind: kinds[flags[0]], visibility, args, returns: returns === "null" ? undefined : returns };
  }

  function routes(router) {
    if (router === undefined) throw new Wrong("InvalidHttpModule", "`http.js` needs a default export: `export default http`");
    if (router?.isRouter !== true || typeof router.getRoutes !== "function") throw new Wrong("InvalidHttpModule", "the default export of `http.js` is no router: make it with `httpRouter()`");
    return router.getRoutes().map(([path, method, handler]) => {
      if (handler?.isHttp !== true) throw new Wrong("InvalidHttpModule", `the handler of ${method} ${path} is no HTTP action`);
      return { path: `${path}`, method: `${method}` };
    });
  }

  function crons(it) {
    if (it?.isCrons !== true || typeof it.export !== "function") throw new Wrong("InvalidCronModule", "the default export of `crons.js` is no cron list: make it with `cronJobs()`");
    return text(it.export(), "the export of `crons.js`");
  }

  try {
    if (path === "schema.js") {
      const schema = namespace.default;
      if (typeof schema?.export !== "function") throw new Wrong("InvalidSchema", "`schema.js` needs a default export made with `defineSchema()`");
      return JSON.stringify({ ok: { schema: text(schema.export(), "the export of `schema.js`") } });
    }
    if (path === "auth.config.js") {
      if (namespace.default === undefined) throw new Wrong("AuthConfigMissingExportError", "`auth.config.js` needs a default export");
      const auth = JSON.stringify(namespace.default);
      if (!Array.isArray(namespace.default?.providers)) throw new Wrong("AuthConfigNotMatchingSchemaError", "the default export of `auth.config.js` needs a list `providers`");
      return JSON.stringify({ ok: { auth } });
    }
    const functions = [];
    for (const name of Object.keys(namespace)) {
      const it = namespace[name];
      if (it === null || (typeof it !== "object" && typeof it !== "function")) continue;
      const found = describe(name, it);
      if (found !== undefined) functions.push(found);
    }
    const module = { functions };
    if (path === "http.js") module.http_routes = routes(namespace.default);
    if (path === "crons.js") module.crons = crons(namespace.default);
    return JSON.stringify({ ok: { module } });
  } catch (error) {
    if (!(error instanceof Wrong)) throw error;
    return JSON.stringify({ error: { code: error.code, message: error.message } });
  }
})

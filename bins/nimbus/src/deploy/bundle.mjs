// Bundles the modules of an application with the application's own esbuild, as the official command line does,
// so that a deployment is the same whichever of them made it. Runs in the user's Node.js: the job comes in on
// standard input, what was made goes out on standard output, both JSON. Nothing is written to the disk: the
// names of shared chunks depend on where output would lie, and that must not differ from machine to machine.
import { createRequire } from "node:module";
import fs from "node:fs";
import path from "node:path";

function answer(value) {
  // Not process.exit(): a pipe may not have taken everything yet.
  process.stdout.write(JSON.stringify(value));
}

async function readJob() {
  const parts = [];
  for await (const part of process.stdin) parts.push(part);
  return JSON.parse(Buffer.concat(parts).toString("utf8"));
}

// The package.json that a resolved file of a package belongs to.
function versionOf(file, name) {
  for (let dir = path.dirname(file); dir !== path.dirname(dir); dir = path.dirname(dir)) {
    const found = path.join(dir, "package.json");
    if (!fs.existsSync(found)) continue;
    const json = JSON.parse(fs.readFileSync(found, "utf8"));
    if (json.name === name) return json.version;
  }
  return null;
}

// Modules that a browser bundle cannot have, in the form that the runtime offers them.
const shims = {
  name: "nimbus-shims",
  setup(build) {
    build.onResolve({ filter: /^server-only$/ }, () => ({ path: "server-only", namespace: "nimbus-empty" }));
    build.onLoad({ filter: /.*/, namespace: "nimbus-empty" }, () => ({ contents: "" }));
    // The runtime has none: an empty one would lose what is kept in it without a word.
    build.onResolve({ filter: /^(node:)?async_hooks$/ }, () => ({
      errors: [{ text: "async_hooks (AsyncLocalStorage, AsyncResource) is not there in functions" }],
    }));
    // `import module from "./x.wasm"` gives a WebAssembly.Module.
    build.onResolve({ filter: /\.wasm$/ }, (args) => {
      if (args.namespace === "nimbus-wasm") return { path: args.path, namespace: "nimbus-wasm-bytes" };
      if (args.resolveDir === "") return undefined;
      return { path: path.resolve(args.resolveDir, args.path), namespace: "nimbus-wasm" };
    });
    build.onLoad({ filter: /.*/, namespace: "nimbus-wasm" }, (args) => ({
      contents: `import bytes from ${JSON.stringify(args.path)};\nexport default new WebAssembly.Module(bytes);`,
    }));
    build.onLoad({ filter: /.*/, namespace: "nimbus-wasm-bytes" }, async (args) => ({
      contents: await fs.promises.readFile(args.path),
      loader: "binary",
    }));
  },
};

async function main() {
  const job = await readJob();
  const require = createRequire(path.join(job.appDir, "package.json"));
  let esbuild, convexVersion;
  try {
    esbuild = require("esbuild");
  } catch (error) {
    return answer({ missing: "esbuild", message: String(error.message) });
  }
  try {
    convexVersion = versionOf(require.resolve("convex/server"), "convex");
  } catch (error) {
    return answer({ missing: "convex", message: String(error.message) });
  }

  const warnings = [];
  const bundle = async (entryPoints, more) => {
    const result = await esbuild.build({
      absWorkingDir: job.appDir,
      entryPoints,
      bundle: true,
      platform: "browser",
      format: "esm",
      target: "esnext",
      jsx: "automatic",
      outdir: "out",
      outbase: job.functionsDir,
      conditions: ["convex", "module"],
      plugins: [shims],
      write: false,
      sourcemap: true,
      sourcesContent: false,
      splitting: true,
      chunkNames: "_deps/[hash]",
      treeShaking: true,
      minifySyntax: true,
      minifyIdentifiers: true,
      keepNames: true,
      define: { "process.env.NODE_ENV": '"production"' },
      logLevel: "silent",
      ...more,
    });
    warnings.push(...(await esbuild.formatMessages(result.warnings, { kind: "warning", terminalWidth: 100 })));
    const out = path.join(job.appDir, "out");
    const files = new Map(
      result.outputFiles.map((file) => [path.relative(out, file.path).split(path.sep).join("/"), file.text]),
    );
    const modules = [];
    for (const [name, source] of files) {
      if (name.endsWith(".js")) modules.push({ path: name, source, sourceMap: files.get(`${name}.map`) });
    }
    return modules;
  };

  // Components are other directories with such a file; they are only counted here.
  const components = [];
  const seeComponents = {
    name: "nimbus-components",
    setup(build) {
      build.onResolve({ filter: /convex\.config(\.[jt]s)?$/ }, (args) => {
        if (args.kind === "entry-point") return undefined;
        components.push(args.path);
        return { path: args.path, external: true };
      });
    },
  };
  const alone = { splitting: false };
  try {
    const modules = job.entryPoints.length === 0 ? [] : await bundle(job.entryPoints);
    if (job.authConfig !== null) modules.push(...(await bundle([job.authConfig], alone)));
    const schema = job.schema === null ? null : (await bundle([job.schema], alone))[0];
    const whole = { ...alone, minify: true, plugins: [seeComponents, shims] };
    const definition = job.appConfig === null ? null : (await bundle([job.appConfig], whole))[0];
    answer({ modules, schema, definition, components, warnings, convexVersion, esbuildVersion: esbuild.version });
  } catch (error) {
    if (!Array.isArray(error.errors)) throw error;
    const node = error.errors.some((one) => one.notes.some((note) => note.text.includes("bundle for node")));
    answer({ errors: await esbuild.formatMessages(error.errors, { kind: "error", terminalWidth: 100 }), node });
  } finally {
    // Newer versions keep a child process that would keep this one.
    await esbuild.stop?.();
  }
}

await main();

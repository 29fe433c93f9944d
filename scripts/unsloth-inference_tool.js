#!/usr/bin/env node
// Tests an OpenAI-compatible endpoint feature by feature; --help says how.
// Without a package.json beside it this file may be no ES module, so it imports one the way any file can.
import("../clients/js/src/cli.js").then(({ run }) => run("unsloth-inference_tool.js"));

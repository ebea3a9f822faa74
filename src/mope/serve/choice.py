"""The page of a server of several runs: a choice, a field per input of the chosen run, and its answer.

Runs come and go while it is open, so it is made in the browser, of what `/v1/runs` says. Nothing is read from
the web, and whatever a run or an answer says is put in as text.
"""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>mope: several runs</title>
<style>
body {font: 16px system-ui, sans-serif; max-width: 44em; margin: 4vh auto; padding: 0 1em; color: #1b2733}
label {display: block; margin: .9em 0} label span {display: block; margin-bottom: .25em}
select, input, textarea, button {font: inherit; padding: .45em; width: 100%; box-sizing: border-box}
textarea {height: 4em} button {margin-top: 1em; cursor: pointer}
#about {color: #52606d; font-size: 14px} #error {color: #a12622}
#answer div {position: relative; margin: .4em 0; padding: .3em .5em; background: #ecf2f9}
#answer i {position: absolute; inset: 0 auto 0 0; background: #9cc0e7; z-index: 0}
#answer b, #answer em {position: relative; z-index: 1; font-style: normal} #answer em {float: right}
</style>
<h1>Runs</h1>
<label id="secret" hidden><span>Token</span><input id="token" type="password"></label>
<label><span>Run</span><select id="run"></select></label>
<p id="about"></p>
<form id="form"><div id="inputs"></div><button>Predict</button></form>
<p id="error" role="alert"></p><div id="answer" aria-live="polite"></div>
<p>The same as JSON: <a href="/docs">/docs</a>.</p>
<script>
const at = (id) => document.getElementById(id);
let runs = [];

function make(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}

async function ask(path, options = {}) {
  const token = at("token").value;
  const answer = await fetch(path, {...options, headers: token ? {Authorization: `Bearer ${token}`} : {}});
  const said = await answer.json();
  if (answer.status === 401) at("secret").hidden = false;
  if (!answer.ok) throw Object.assign(new Error(said.error), {status: answer.status});
  return said;
}

async function guarded(action) {
  at("error").textContent = "";
  try { await action(); } catch (error) { at("error").textContent = error.message; }
}

function shown(value) { return Number.isInteger(value) ? String(value) : value.toFixed(3); }

function chosen() { return runs.find((run) => run.name === at("run").value); }

function tell() {
  const run = chosen();
  if (!run || run.error) { at("about").textContent = run ? run.error : ""; return; }
  const metrics = Object.entries(run.metrics.test || run.metrics.validation || {})
    .filter(([, value]) => typeof value === "number").map(([name, value]) => `${name} ${shown(value)}`);
  at("about").textContent = [run.task, run.method, ...metrics.slice(0, 4)].join(" \\u00b7 ");
}

function show() {
  const run = chosen();
  tell();
  at("inputs").replaceChildren(); at("answer").replaceChildren();
  if (!run || run.error) return;
  for (const [name, input] of Object.entries(run.inputs)) {
    const may = input.may_be_left_out ? " (may be left out)" : "";
    if (input.columns) {
      for (const [column, kind] of Object.entries(input.columns))
        at("inputs").append(make("label", {}, make("span", {textContent: `${column} (${kind})`}),
          make("input", {name: `${name}.${column}`})));
      continue;
    }
    const field = input.kind === "text" ? make("textarea", {name})
      : make("input", {name, type: "file", accept: `${input.kind}/*`});
    at("inputs").append(make("label", {}, make("span", {textContent: name + may}), field));
  }
}

async function list() {  // what was typed stays, as long as the run takes the same
  const found = (await ask("/v1/runs")).runs;
  const before = chosen();
  runs = found;
  at("run").replaceChildren(...runs.map((run) => make("option", {textContent: run.name, value: run.name})));
  if (before && runs.some((run) => run.name === before.name)) at("run").value = before.name;
  const now = chosen();
  const takes = (run) => run && JSON.stringify([run.name, run.inputs]);
  if (before && takes(before) === takes(now)) tell(); else show();
}

async function predict() {
  const form = new FormData();
  for (const field of at("inputs").querySelectorAll("input, textarea")) {
    if (field.type === "file") { if (field.files.length) form.append(field.name, field.files[0]); }
    else if (field.value) form.append(field.name, field.value);
  }
  const path = `/v1/runs/${encodeURIComponent(at("run").value)}/predict`;
  let found;
  try {
    found = (await ask(path, {method: "POST", body: form})).predictions[0];
  } catch (error) {
    if (error.status === 404 || error.status === 422) await list();  // the run is gone, or another one
    throw error;
  }
  if (found.error) throw new Error(found.error);
  const shares = Object.entries(found.probabilities || {}).sort((a, b) => b[1] - a[1]).slice(0, 5);
  const rows = shares.map(([label, share]) => {
    const bar = make("i"); bar.style.width = `${100 * share}%`;
    return make("div", {}, bar, make("b", {textContent: label}), make("em", {textContent: shown(share)}));
  });
  const label = typeof found.label === "object" ? JSON.stringify(found.label) : String(found.label);
  at("answer").replaceChildren(...(rows.length ? rows : [make("div", {}, make("b", {textContent: label}))]));
}

at("run").addEventListener("change", show);
at("token").value = sessionStorage.getItem("token") || "";  // as long as this tab is there
at("token").addEventListener("change", () => {
  sessionStorage.setItem("token", at("token").value);
  guarded(list);
});
at("form").addEventListener("submit", (event) => { event.preventDefault(); guarded(predict); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) guarded(list); });
guarded(list);
</script>
</html>
"""

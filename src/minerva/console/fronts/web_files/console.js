"use strict";

// Everything that comes from consoles, records and people is put into the page as text, never as HTML.

const $ = (id) => document.getElementById(id);
const nonce = document.querySelector("meta[name=nonce]").content;
const views = ["login", "list", "terminal-view", "records-view"];
let socket = null;
let terminal = null;
let player = null;
let fit = null;
let timer = null;
let playing = 0;
let listed = "";

// xterm.js makes style elements; the page's policy lets in only those with the nonce.
const createElement = document.createElement.bind(document);
document.createElement = (name, options) => {
  const element = createElement(name, options);
  if (name.toLowerCase() === "style") element.nonce = nonce;
  return element;
};

function show(view) {
  for (const name of views) $(name).hidden = name !== view;
  $("search-form").hidden = $("logout").hidden = view === "login";
  clearInterval(timer);
  playing += 1;
  if (view === "list") timer = setInterval(() => run(refresh), 2000);
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

async function run(action) {
  try {
    await action();
  } catch (error) {
    problem(error.message);
  }
}

async function get(path, options = {}) {
  for (let tries = 0; ; tries += 1) {
    let answer;
    try {
      answer = await fetch(path, options);
    } catch {
      throw new Error("the console server does not answer");
    }
    // What was wanted before, in another tab or a moment ago, is still being read.
    if (answer.status !== 429 || options.method || tries === 5) return answer;
    await new Promise((done) => { setTimeout(done, 1000); });
  }
}

async function api(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await get(path, options);
  const found = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (answer.status === 401) {
    show("login");
    // To one who comes, the form says it all.
    if ($("user").textContent === "") return new Promise(() => {});
    $("user").textContent = "";
  }
  if (!answer.ok) throw new Error(found.error);
  return found;
}

function cell(row, text, className) {
  const made = row.insertCell();
  made.textContent = text ?? "";
  if (className) made.className = className;
  return made;
}

function button(parent, text, action) {
  const made = createElement("button");
  made.textContent = text;
  made.addEventListener("click", () => run(action));
  parent.append(made, " ");
}

function link(parent, text, where) {
  const made = createElement("a");
  made.textContent = text;
  made.href = where;
  parent.append(made);
}

// What the page shows is in its address, so that it can be gone back to, reloaded, and kept.
const at = (view, name) => `#${view}/${encodeURIComponent(name)}`;

function go(where) {
  if (location.hash === where) run(route);
  else location.hash = where;
}

async function route() {
  const [, view, name] = /^#?([^/]*)\/?(.*)$/.exec(location.hash);
  const wanted = decodeURIComponent(name);
  if (socket) socket.close();
  socket = null;
  problem("");
  document.title = wanted || "Consoles";
  if (view === "watch") await attach(wanted, "read");
  else if (view === "open") await attach(wanted, "write");
  else if (view === "records") await records(wanted);
  else if (view === "search") await search(wanted);
  else {
    listed = "";
    show("list");
    await refresh();
  }
}

async function consoles(listing = false) {
  const found = await api("/api/consoles");
  $("user").textContent = found.user;
  // Only the list takes back what was wrong: an answer that comes late is not about what is shown by then.
  if (listing || !found.terminal)
    problem(found.terminal ? "" : "This installation has no terminal for the page: run tools/vendor-xterm there.");
  return found.consoles;
}

async function refresh() {
  const shown = (await consoles(true)).map((one) => [
    one.name, one.state, one.writer, one.attached, one.state === "Down" ? one.reason : one.description,
    one.may_write]);
  // Rows that stay the same are not touched: somebody may be about to click.
  const text = JSON.stringify(shown);
  if (text === listed) return;
  listed = text;
  const rows = shown.map(([name, state, writer, attached, remark, mayWrite]) => {
    const row = createElement("tr");
    link(cell(row, ""), name, at(mayWrite ? "open" : "watch", name));
    cell(row, state, state);
    cell(row, writer);
    cell(row, attached || "");
    cell(row, remark);
    const actions = cell(row, "", "actions");
    button(actions, "Watch", () => go(at("watch", name)));
    if (mayWrite) button(actions, "Open", () => go(at("open", name)));
    button(actions, "Records", () => go(at("records", name)));
    return row;
  });
  $("rows").replaceChildren(...rows);
  $("none").hidden = rows.length > 0;
}

function size(term, parent) {
  // As many characters as fit: measured on one that is shown.
  const probe = createElement("span");
  probe.textContent = "W".repeat(100);
  probe.style.cssText = "position:absolute;visibility:hidden;white-space:pre;line-height:normal";
  probe.style.fontFamily = term.options.fontFamily;
  probe.style.fontSize = `${term.options.fontSize}px`;
  parent.append(probe);
  const width = probe.getBoundingClientRect().width / 100 || 9;
  const height = probe.getBoundingClientRect().height || 18;
  probe.remove();
  const columns = Math.floor((parent.clientWidth - 30) / width);
  const rows = Math.floor((parent.clientHeight - 10) / height);
  term.resize(Math.max(80, Math.min(columns, 300)), Math.max(24, Math.min(rows, 100)));
}

function makeTerminal(before, parent, readOnly) {
  if (before) before.dispose();
  parent.replaceChildren();
  const made = new Terminal({ disableStdin: readOnly, scrollback: 10000, fontSize: 15, cursorBlink: !readOnly });
  made.open(parent);
  return made;
}

async function attach(name, mode) {
  show("terminal-view");
  $("name").textContent = name;
  $("state").textContent = $("state").className = $("writes").textContent = "";
  $("terminal").replaceChildren();
  for (const id of ["ask", "force", "release", "break", "say", "power", "who", "again"]) $(id).hidden = true;
  const here = location.hash;
  const console = (await consoles()).find((one) => one.name === name);
  if (location.hash !== here) return;
  if (!console) throw new Error(`there is no console ${name}`);
  terminal = makeTerminal(terminal, $("terminal"), false);
  fit = () => size(terminal, $("terminal"));
  fit();
  const mine = new WebSocket(`wss://${location.host}/api/consoles/${encodeURIComponent(name)}/attach?mode=${mode}`);
  mine.binaryType = "arraybuffer";
  const encoder = new TextEncoder();
  socket = mine;
  mine.onmessage = (event) => {
    if (typeof event.data !== "string") {
      terminal.write(new Uint8Array(event.data));
      return;
    }
    const said = JSON.parse(event.data);
    if (said.told !== undefined) terminal.write(`\r\n[${said.told.replaceAll("\n", "\r\n")}]\r\n`);
    if (said.state !== undefined) {
      $("state").textContent = said.state;
      $("state").className = said.state;
      $("writes").textContent = said.writes ? "you write" : "you read";
      $("ask").hidden = said.writes || !console.may_write;
      $("force").hidden = said.writes || !console.may_force;
      $("release").hidden = $("break").hidden = !said.writes;
      $("say").hidden = !console.may_write;
      $("who").hidden = false;
      $("power").hidden = !console.power;
      terminal.options.disableStdin = !said.writes;
    }
  };
  mine.onclose = (event) => {
    if (socket !== mine) return;
    terminal.write(`\r\n[the connection has ended${event.reason ? `: ${event.reason}` : ""}]\r\n`);
    terminal.options.disableStdin = true;
    for (const id of ["ask", "force", "release", "break", "say", "power", "who"]) $(id).hidden = true;
    $("state").textContent = $("state").className = $("writes").textContent = "";
    $("again").hidden = false;
  };
  const send = (data) => {
    for (let start = 0; mine.readyState === 1 && start < data.length; start += 32768)
      mine.send(data.slice(start, start + 32768));
  };
  terminal.onData((text) => send(encoder.encode(text)));
  terminal.onBinary((text) => send(Uint8Array.from(text, (character) => character.charCodeAt(0))));
  terminal.focus();
}

function command(name, rest) {
  if (socket && socket.readyState === 1) socket.send(JSON.stringify({ do: name, ...rest }));
  if (terminal) terminal.focus();
}

function showRecords(heading, some) {
  show("records-view");
  document.title = heading;
  $("records-name").textContent = heading;
  $("records-table").hidden = $("replay-bar").hidden = !some;
  $("at").textContent = $("caption").textContent = "";
  $("player").replaceChildren();
  $("lines").replaceChildren();
}

async function records(name) {
  const here = location.hash;
  showRecords(name, true);
  const path = `/api/consoles/${encodeURIComponent(name)}`;
  await consoles();
  // One after the other: a user may want only so much of the records at once.
  const found = await api(`${path}/records`);
  const log = await api(`${path}/log?lines=200`);
  if (location.hash !== here) return;
  $("records").replaceChildren(...found.records.map((record) => {
    const row = createElement("tr");
    cell(row, when(record.start));
    cell(row, record.bytes < 1024 ? `${record.bytes} B` : `${Math.round(record.bytes / 1024)} KiB`);
    const actions = cell(row, "", "actions");
    const file = `${path}/records/${encodeURIComponent(record.name)}`;
    button(actions, "Replay", () => replay(file));
    button(actions, "Download", () => { location.href = file; });
    return row;
  }));
  $("caption").textContent = log.lines.length ? `The last ${log.lines.length} lines` : "Nothing was recorded.";
  lines(log.lines);
  $("lines").scrollTop = $("lines").scrollHeight;
}

async function search(text) {
  const here = location.hash;
  $("search-text").value = text;
  showRecords(`Search for ${text}`, false);
  await consoles();
  const found = await api(`/api/search?text=${encodeURIComponent(text)}`);
  if (location.hash !== here) return;
  const count = found.lines.length;
  $("caption").textContent = !count ? "Nothing was found." : `${count} lines${found.complete ? "" : ", and there are more"}`;
  lines(found.lines, true);
}

function when(seconds, digits = 3) {
  const text = new Date(seconds * 1000).toISOString();
  return digits ? text : text.replace(/\.\d+/, "");
}

function lines(found, withName) {
  const shown = found.map((line) => {
    const row = createElement("div");
    row.append(`${when(line.at)} `);
    if (withName) {
      link(row, line.console, at("records", line.console));
      row.append(" ");
    }
    row.append(`${line.kind} ${line.text}`);
    if (line.kind === "*") row.className = "mark";
    return row;
  });
  $("lines").replaceChildren(...shown);
}

async function replay(file) {
  playing += 1;
  const mine = playing;
  const answer = await get(file);
  if (!answer.ok) throw new Error("the record could not be read");
  const [header, ...events] = (await answer.text()).split("\n");
  const start = JSON.parse(header).timestamp;
  player = makeTerminal(player, $("player"), true);
  let before = null;
  for (const line of events) {
    let event;
    try {
      event = JSON.parse(line);
    } catch {
      continue; // the last one may be being written
    }
    if (event[1] !== "o") continue;
    if (before !== null) {
      const wait = Math.min(event[0] - before, 2) / Number($("speed").value);
      if (wait > 0.004) await new Promise((done) => { setTimeout(done, wait * 1000); });
    }
    if (playing !== mine) return;
    before = event[0];
    $("at").textContent = when(start + before, 0);
    player.write(event[2]);
  }
  $("at").textContent += ", the end";
}

function submit(id, action) {
  $(id).addEventListener("submit", (event) => {
    event.preventDefault();
    run(action);
  });
}

submit("login", async () => {
  const password = $("login-password").value;
  $("login-password").value = "";
  await api("/api/login", { user: $("login-user").value, password });
  await route();
});
submit("search-form", async () => go(at("search", $("search-text").value)));
for (const [id, action] of [
  ["logout", async () => {
    if (socket) socket.close();
    socket = null;
    await api("/api/logout", {});
    $("user").textContent = "";
    problem("");
    show("login");
  }],
  ["back", async () => go("#")],
  ["records-back", async () => go("#")],
  ["again", route],
  ["stop", async () => { playing += 1; }],
  ["ask", async () => command("write")],
  ["force", async () => command("force")],
  ["release", async () => command("release")],
  ["break", async () => command("break")],
  ["who", async () => command("who")],
]) $(id).addEventListener("click", () => run(action));
$("say").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !$("say").value) return;
  command("say", { text: $("say").value });
  $("say").value = "";
});
$("power").addEventListener("change", () => run(async () => {
  const action = $("power").value;
  const name = $("name").textContent;
  $("power").value = "";
  if (action !== "status") {
    const found = await api(`/api/consoles/${encodeURIComponent(name)}/who`);
    const people = found.who.map((one) => `${one.user} (${one.writing ? "writes" : "reads"}, from ${one.source})`);
    if (!confirm(`Power ${action} of ${name}? Attached to its console: ${people.join(", ") || "nobody"}.`)) return;
  }
  command("power", { action });
}));
addEventListener("resize", () => { if (fit && !$("terminal-view").hidden) fit(); });
addEventListener("hashchange", () => run(route));

run(route);

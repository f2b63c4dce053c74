"use strict";
// Everything that came from a model or a data set reaches the page as text nodes and numbers, nothing as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const ROW = 66, DX = 34, DY = 19, LEFT = 16, TOP = 14, LABEL = 190;
  const at = (id) => document.getElementById(id);
  const index = JSON.parse(at("index").textContent);
  let blocks = JSON.parse(at("blocks").textContent);
  let shown = index.trees.map((_, i) => i);
  let current = -1, tree = null, layout = null, selected = 0, ticket = 0;

  // What cannot be seen, or would reorder what is seen, is spelled out.
  const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\ufe00-\ufe0f]|\p{Cf}|\p{Cs}/gu;
  function put(parent, text) {
    let from = 0;
    for (const match of String(text).matchAll(ODD)) {
      parent.append(text.slice(from, match.index));
      const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      parent.append(make("span", "odd", "U+" + code));
      from = match.index + match[0].length;
    }
    parent.append(text.slice(from));
    return parent;
  }
  const plain = (text) => String(text).replace(ODD, (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));
  function make(name, kind, text) {
    const element = document.createElement(name);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function draw(name, attributes, parent) {
    const element = document.createElementNS(SVG, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (parent) parent.append(element);
    return element;
  }
  const number = (value, digits = 3) => (value === null || value === undefined ? "-" : value.toFixed(digits));
  const mark = (right) => (right === 1 || right === true ? "\u2713 right" : right === 0 || right === false ? "\u2717 wrong" : "not graded");
  const tone = (right) => (right === 1 || right === true ? "right" : right === 0 || right === false ? "wrong" : "soft");

  // Viridis by its corners, lifted where the ground is dark: little is dark, much is bright, also without colour.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const BY_DAY = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const BY_NIGHT = [[128, 92, 178], [92, 128, 196], [52, 172, 164], [122, 212, 112], [253, 231, 37]];
  function colour(t) {
    if (t === null) return "#8a929b";
    const STOPS = dark.matches ? BY_NIGHT : BY_DAY;
    const x = Math.min(0.9999, Math.max(0, t)) * (STOPS.length - 1), i = Math.floor(x), f = x - i;
    return "rgb(" + STOPS[i].map((c, j) => Math.round(c + f * (STOPS[i + 1][j] - c))).join(",") + ")";
  }

  // The list: only the rows that can be seen are in the page.
  function renderRows() {
    const list = at("list"), rows = at("rows");
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 8);
    rows.style.height = shown.length * ROW + "px";
    rows.replaceChildren();
    for (let i = first; i < last; i++) {
      const entry = index.trees[shown[i]];
      const row = make("div", "row");
      row.style.top = i * ROW + "px";
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", String(shown[i] === current));
      row.id = "row-" + shown[i];
      row.append(put(make("div", "head"), entry.head || entry.id));
      const sub = make("div", "sub");
      sub.append(put(make("span"), entry.id));
      const state = entry.right === null ? entry.n + " traces" : entry.right + " of " + entry.n + " right";
      sub.append(make("span", entry.error ? "wrong" : tone(entry.chosen), entry.error ? "refused" : state + (entry.chosen === null ? "" : ", chosen " + (entry.chosen ? "\u2713" : "\u2717"))));
      row.append(sub);
      row.addEventListener("click", () => open(shown[i]));
      rows.append(row);
    }
    if (current >= 0) list.setAttribute("aria-activedescendant", "row-" + current);
  }
  const FILTERS = {
    all: () => true,
    mixed: (e) => e.right > 0 && e.right < e.n,
    rare: (e) => e.rare,
    none: (e) => e.right === 0,
    missed: (e) => e.chosen === false && e.right > 0,
  };
  function refilter() {
    const words = at("search").value.toLowerCase(), keep = FILTERS[at("filter").value];
    shown = [];
    index.trees.forEach((entry, i) => {
      if (keep(entry) && (!words || (entry.head + " " + entry.id).toLowerCase().includes(words))) shown.push(i);
    });
    at("count").textContent = shown.length + " of " + index.trees.length + " questions";
    at("list").scrollTop = 0;
    renderRows();
  }
  function step(by) {
    const place = shown.indexOf(current), next = Math.min(shown.length - 1, Math.max(0, place + by));
    if (next < 0 || !shown.length) return;
    const list = at("list"), top = next * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    open(shown[next]);
  }

  // A tree is unpacked when it is opened.
  async function unpack(block) {
    const bytes = Uint8Array.from(atob(block), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }
  async function open(i) {
    current = i;
    renderRows();
    const mine = ++ticket;
    const found = await unpack(blocks[i]);
    if (mine !== ticket) return; // another was asked for meanwhile
    tree = found;
    arrange();
    selected = tree.chosen === null ? 0 : tree.chosen;
    renderQuestion();
    renderTree();
    renderRules();
    choose(selected, true);
    document.body.dataset.ready = String(i);
  }

  function arrange() {
    const n = tree.parent.length, children = Array.from({ length: n }, () => []), depth = new Array(n).fill(0), y = new Array(n).fill(0);
    for (let i = 1; i < n; i++) {
      children[tree.parent[i]].push(i);
      depth[i] = depth[tree.parent[i]] + 1;
    }
    let rows = 0;
    const stack = [0], order = [];
    while (stack.length) {
      const i = stack.pop();
      order.push(i);
      for (let k = children[i].length - 1; k >= 0; k--) stack.push(children[i][k]);
    }
    for (const i of order) if (!children[i].length) y[i] = rows++;
    for (let k = n - 1; k >= 0; k--) {
      const i = order[k], c = children[i];
      if (c.length) y[i] = (y[c[0]] + y[c[c.length - 1]]) / 2;
    }
    const flows = tree.flow.filter((f) => f !== null), least = Math.min(...flows), most = Math.max(...flows);
    const share = tree.flow.map((f) => (f === null ? null : most > least ? (f - least) / (most - least) : 0.5));
    layout = { n, children, depth, y, rows, order, share, least, most, any: flows.length > 0, deepest: Math.max(...depth) };
  }

  function renderQuestion() {
    const place = at("question");
    place.replaceChildren();
    put(place, tree.question || tree.prompt);
    if (tree.gold !== null) place.append(make("span", "soft", "\n\u2014 right is: "), put(make("span", "soft"), tree.gold));
    if (tree.error) place.append(make("span", "wrong", "\nrefused: "), put(make("span", "wrong"), tree.error));
    const legend = at("legend");
    legend.replaceChildren();
    if (layout.any) {
      const name = tree.scorer === "logprob" ? "mean log-probability (no verifier)" : "log-flow by " + plain(tree.scorer);
      legend.append(make("span", "", "width and colour: " + name + ", from " + number(layout.least, 2)));
      const bar = draw("svg", { width: 90, height: 14, "aria-hidden": "true" });
      for (let k = 0; k < 18; k++) draw("rect", { x: k * 5, y: 7 - (1 + (k / 17) * 5), width: 5, height: 2 * (1 + (k / 17) * 5), fill: colour(k / 17) }, bar);
      legend.append(bar, make("span", "", "to " + number(layout.most, 2) + " within this tree"));
    } else legend.append(make("span", "", "no state of this tree has a score"));
    legend.append(make("span", "", index.graded ? "\u2713 right, \u2717 wrong, \u25c7 unfinished, \u2605 chosen" : "\u25cb finished, \u25c7 unfinished, \u2605 chosen"));
  }

  function renderTree() {
    const place = at("tree");
    place.replaceChildren();
    const X = (i) => LEFT + layout.depth[i] * DX, Y = (i) => TOP + layout.y[i] * DY;
    const svg = draw("svg", { width: LEFT + layout.deepest * DX + LABEL, height: TOP * 2 + Math.max(1, layout.rows) * DY });
    const edges = draw("g", {}, svg), dots = draw("g", {}, svg);
    for (let i = 1; i < layout.n; i++) {
      const p = tree.parent[i], t = layout.share[i], x0 = X(p), y0 = Y(p), x1 = X(i), y1 = Y(i), m = (x0 + x1) / 2;
      draw("path", { class: "edge", d: `M${x0},${y0}C${m},${y0} ${m},${y1} ${x1},${y1}`, stroke: colour(t), "stroke-width": t === null ? 1 : 1 + 5 * t }, edges);
    }
    for (const i of layout.order) {
      const g = draw("g", { class: "node", id: "node-" + i, "data-node": i }, dots), x = X(i), y = Y(i);
      draw("rect", { x: x - DX / 2, y: y - DY / 2, width: layout.children[i].length ? DX : DX / 2 + LABEL, height: DY, fill: "transparent" }, g);
      draw("circle", { cx: x, cy: y, r: i === 0 ? 5 : 3.5, fill: colour(layout.share[i]), stroke: "#555", "stroke-width": 0.6 }, g);
      if (!layout.children[i].length && i > 0) {
        const r = tree.right[i], sign = !tree.terminal[i] ? "\u25c7" : r === 1 ? "\u2713" : r === 0 ? "\u2717" : "\u25cb";
        const label = draw("text", { x: x + 9, y: y + 4 }, g);
        const signed = draw("tspan", { class: r === 1 ? "right" : r === 0 ? "wrong" : "soft", fill: r === 1 ? "var(--right)" : r === 0 ? "var(--wrong)" : "currentColor", "font-weight": 700 }, label);
        signed.textContent = sign + (tree.chosen === i ? " \u2605" : "");
        const answer = tree.answer[i] === null ? "" : plain(tree.answer[i]).replace(/\s+/g, " ");
        draw("tspan", {}, label).textContent = " " + (answer.length > 22 ? answer.slice(0, 21) + "\u2026" : answer) + (tree.count[i] > 1 ? " \u00d7" + tree.count[i] : "");
      } else if (tree.count[i] > 1) draw("text", { x: x - 3, y: y - 6, "font-size": 9 }, g).textContent = "\u00d7" + tree.count[i];
    }
    svg.addEventListener("click", (event) => {
      const node = event.target.closest(".node");
      if (node) choose(Number(node.dataset.node), false);
    });
    layout.X = X;
    layout.Y = Y;
    layout.over = draw("g", { "pointer-events": "none" }, svg);
    place.append(svg);
  }

  function pathTo(i) {
    const path = [];
    for (let k = i; k !== null; k = tree.parent[k]) path.unshift(k);
    return path;
  }

  function choose(i, fresh) {
    selected = i;
    const { X, Y, over } = layout, path = pathTo(i), place = at("tree");
    over.replaceChildren();
    draw("path", { class: "path", d: path.map((k, j) => (j ? "L" : "M") + X(k) + "," + Y(k)).join("") }, over);
    draw("circle", { class: "halo", cx: X(i), cy: Y(i), r: 8 }, over);
    if (fresh) place.scrollTo(0, Math.max(0, Y(i) - place.clientHeight / 2));
    else {
      if (Y(i) < place.scrollTop + 20) place.scrollTop = Y(i) - 30;
      if (Y(i) > place.scrollTop + place.clientHeight - 20) place.scrollTop = Y(i) - place.clientHeight + 40;
      if (X(i) < place.scrollLeft + 20) place.scrollLeft = X(i) - 40;
      if (X(i) > place.scrollLeft + place.clientWidth - 60) place.scrollLeft = X(i) - place.clientWidth + 120;
    }
    renderDetails(i, path);
  }

  function renderDetails(i, path) {
    const place = at("details");
    place.replaceChildren();
    const depth = path.length - 1;
    place.append(make("h2", "", i === 0 ? "The prompt" : "Step " + depth + (tree.terminal[i] ? ", the last of its trajectory" : "")));
    if (tree.right[i] !== null) place.append(make("p", tone(tree.right[i]), mark(tree.right[i])));
    const facts = [];
    if (tree.answer[i] !== null) facts.push(["answer", tree.answer[i]]);
    facts.push([tree.scorer === "logprob" ? "score (no verifier)" : "log-flow", number(tree.flow[i])]);
    for (const name in tree.scores) if (name !== tree.scorer) facts.push(["score " + name, number(tree.scores[name][i])]);
    if (i > 0) {
      facts.push(["log-probability", number(tree.logprob[i], 2) + " nats, " + number(tree.tokens[i] ? tree.logprob[i] / tree.tokens[i] : 0, 2) + " a token"]);
      facts.push(["tokens", tree.tokens[i]], ["drawn", tree.count[i] + (tree.count[i] === 1 ? " time" : " times")], ["ended by", tree.stop[i] || "-"]);
    } else facts.push(["tokens", tree.tokens[i]]);
    facts.push(["children", layout.children[i].length]);
    const table = make("table");
    for (const [name, value] of facts) {
      const row = make("tr");
      row.append(put(make("th"), name), put(make("td"), String(value)));
      table.append(row);
    }
    place.append(table, make("h2", "", "Text up to here"));
    const text = make("p", "text");
    if (i === 0) put(text, tree.prompt);
    path.slice(1).forEach((k) => text.append(put(make("span", k === i ? "here" : "before"), tree.text[k])));
    place.append(text);
    if (tree.cut[i]) place.append(make("p", "soft", "A stop string took back the last " + tree.cut[i] + " characters of the steps before."));
  }

  function renderRules() {
    const place = at("rules");
    place.replaceChildren();
    const table = make("table");
    const add = (name, leaf, answer, right) => {
      const row = make("tr"), cell = make("td"), go = make("button");
      put(go, answer === null ? "(no answer)" : answer);
      go.addEventListener("click", () => choose(leaf, false));
      cell.append(go);
      row.append(put(make("th"), name), cell, make("td", tone(right), mark(right)));
      table.append(row);
    };
    if (tree.chosen !== null) add("the search chose (" + tree.select + ")", tree.chosen, tree.answer[tree.chosen], tree.right[tree.chosen]);
    for (const rule of tree.rules) add(rule.rule, rule.leaf, rule.answer, rule.right);
    const c = tree.cost;
    place.append(make("h2", "", "What each rule chooses"), table, make("h2", "", "What it cost"));
    place.append(make("p", "soft", c.decoded_tokens + " tokens generated, " + c.refilled_tokens + " computed again, " + c.verifier_tokens + " read by a verifier, prompt of " + c.prompt_tokens + ", " + number(c.seconds, 1) + " s; " + plain(tree.strategy) + ", ended by " + (tree.ended_by || "-")));
  }

  function move(key) {
    const same = layout.order.filter((k) => layout.depth[k] === layout.depth[selected]).sort((a, b) => layout.y[a] - layout.y[b]);
    const place = same.indexOf(selected), children = layout.children[selected];
    const next = { ArrowLeft: tree.parent[selected], ArrowRight: children[0], ArrowUp: same[place - 1], ArrowDown: same[place + 1], Home: 0 }[key];
    if (next !== undefined && next !== null) choose(next, false);
  }

  at("title").append(put(make("span"), index.run + (index.model ? " \u00b7 " + index.model : "")));
  document.title = "arts view: " + plain(index.run);
  at("facts").textContent = index.trees.length + " questions" + (index.graded ? "" : ", not graded");
  if (index.left_out.length) {
    const note = make("details", "soft");
    note.append(make("summary", "", index.left_out.length + " remarks"));
    index.left_out.forEach((reason) => note.append(put(make("p", "soft"), reason)));
    document.querySelector("header").append(note);
  }
  at("list").addEventListener("scroll", () => requestAnimationFrame(renderRows));
  at("list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
    if (by) {
      event.preventDefault();
      step(by);
    }
  });
  at("tree").addEventListener("keydown", (event) => {
    if (tree && (event.key.startsWith("Arrow") || event.key === "Home")) {
      event.preventDefault();
      move(event.key);
    }
  });
  at("search").addEventListener("input", refilter);
  at("filter").addEventListener("change", refilter);
  addEventListener("resize", renderRows);
  dark.addEventListener("change", () => {
    if (!tree) return;
    renderQuestion();
    renderTree();
    choose(selected, false);
  });
  if (!index.graded) at("filter").disabled = true;
  refilter();
  open(0);
})();

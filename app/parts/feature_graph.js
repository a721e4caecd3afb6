// An attribution graph: positions across, layers upwards. Thresholds are applied here, without the server; a click on a feature goes to it.
// In: nodes = [{id, kind, pos, row, influence, say, fixed, selected}], edges = [[source, target, weight, influence]], words, rows, features,
// features_of, edges_of, label. Out: the trigger "picked" = a feature's id.
const SVG = "http://www.w3.org/2000/svg";
const STEP = 15, SIDE = 74, HEIGHT = 62;

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".fgraph");
  const ranges = [...root.querySelectorAll("input")], shown = root.querySelector(".shown");
  const redraw = () => draw(data, root, ranges.map((r) => r.value / 100), shown, setTriggerValue);
  ranges.forEach((range) => { range.oninput = redraw; });
  redraw();
  const scroll = root.querySelector(".scroll");
  scroll.scrollLeft = scroll.scrollWidth; // the answer is at the right end
  scroll.onscroll = () => follow(root);
  follow(root);
  return () => ranges.forEach((range) => { range.oninput = null; });
}

// the names of the rows stay in sight
function follow(root) {
  root.querySelector(".names")?.setAttribute("transform", `translate(${root.querySelector(".scroll").scrollLeft} 0)`);
}

// the fewest entries that hold a share of the sum
function above(values, share) {
  const order = values.map((v, i) => [v, i]).filter(([v]) => v > 0).sort((a, b) => b[0] - a[0]);
  const whole = order.reduce((sum, [v]) => sum + v, 0), kept = new Set();
  let sum = 0;
  for (const [v, i] of order) { if (sum >= share * whole) break; kept.add(i); sum += v; }
  return kept;
}

function draw(data, root, [nodeShare, edgeShare], shown, setTriggerValue) {
  const svg = root.querySelector("svg"), readout = root.querySelector(".readout");
  const chosen = above(data.nodes.map((n) => (n.fixed ? 0 : n.influence)), nodeShare);
  const inside = data.nodes.map((n, i) => n.fixed || chosen.has(i));
  const wires = data.edges.filter(([s, t]) => inside[s] && inside[t]);
  const strong = above(wires.map((e) => e[3]), edgeShare);
  const edges = wires.filter((_, i) => strong.has(i));
  const used = new Set(edges.flatMap(([s, t]) => [s, t]));
  const nodes = data.nodes.map((n, i) => ({ ...n, i })).filter((n) => used.has(n.i) || n.kind === "logit");

  const stacks = new Map();
  nodes.forEach((n) => {
    const key = `${n.pos}/${n.row}`;
    n.place = stacks.get(key) ?? 0;
    stacks.set(key, n.place + 1);
  });
  const share = Math.max(40, (root.clientWidth - SIDE - 24) / data.words.length);
  const wide = data.words.map((_, pos) => Math.max(2, ...nodes.filter((n) => n.pos === pos).map((n) => stacks.get(`${n.pos}/${n.row}`))));
  const lefts = [SIDE];
  wide.forEach((w, i) => lefts.push(lefts[i] + Math.max(share, w * STEP + 12)));
  const width = lefts[lefts.length - 1] + 20, height = HEIGHT * data.rows.length + 84;
  const y = (n) => height - 74 - HEIGHT * n.row;
  const x = (n) => {
    const mine = stacks.get(`${n.pos}/${n.row}`), middle = (lefts[n.pos] + lefts[n.pos + 1]) / 2;
    return middle + (n.place - (mine - 1) / 2) * STEP;
  };

  const add = (parent, tag, attributes, text) => {
    const node = document.createElementNS(SVG, tag);
    Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  };
  svg.replaceChildren();
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  svg.setAttribute("role", "group");
  svg.setAttribute("aria-label", data.label);
  data.rows.forEach((_, row) => {
    add(svg, "line", { class: "row", x1: SIDE - 8, x2: width, y1: y({ row }), y2: y({ row }) });
  });
  data.words.forEach((word, pos) => {
    const middle = (lefts[pos] + lefts[pos + 1]) / 2;
    add(svg, "text", { class: "axis", transform: `translate(${middle + 4} ${height - 8}) rotate(-50)` }, `${pos} ${word}`);
  });
  const largest = Math.max(...edges.map((e) => e[3]), 1e-12), places = new Map(nodes.map((n) => [n.i, n]));
  const lines = edges.map(([s, t, weight, influence]) => {
    const a = places.get(s), b = places.get(t), [x1, y1, x2, y2] = [x(a), y(a) - 6, x(b), y(b) + 6], bend = (y1 - y2) * 0.45;
    const path = add(svg, "path", {
      class: `edge ${weight < 0 ? "minus" : "plus"}`, d: `M${x1},${y1} C${x1},${y1 - bend} ${x2},${y2 + bend} ${x2},${y2}`,
      "stroke-width": 0.5 + 4 * (influence / largest) ** 0.7,
    });
    return { path, s, t };
  });
  const say = (text) => { readout.textContent = text || "Blue adds, red takes away. Point at a node to follow its edges; click a feature (or Enter)."; };
  const light = (i) => lines.forEach(({ path, s, t }) => {
    path.classList.toggle("lit", i === s || i === t);
    path.classList.toggle("dim", i !== null && i !== s && i !== t);
  });
  nodes.forEach((n) => {
    const [cx, cy] = [x(n), y(n)], kind = `node ${n.kind}${n.selected ? " selected" : ""}`;
    const mark = n.kind === "feature"
      ? add(svg, "circle", { class: kind, cx, cy, r: 6 })
      : add(svg, "rect", { class: kind, x: cx - 5.5, y: cy - 5.5, width: 11, height: 11, transform: n.kind === "error" ? `rotate(45 ${cx} ${cy})` : "" });
    mark.setAttribute("aria-label", n.say);
    mark.setAttribute("tabindex", "0");
    mark.setAttribute("role", n.kind === "feature" ? "button" : "img");
    const enter = () => { say(n.say); light(n.i); }, leave = () => { say(""); light(null); };
    mark.addEventListener("mouseenter", enter);
    mark.addEventListener("focus", enter);
    mark.addEventListener("mouseleave", leave);
    mark.addEventListener("blur", leave);
    if (n.kind !== "feature") return;
    mark.addEventListener("click", () => setTriggerValue("picked", n.id));
    mark.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); setTriggerValue("picked", n.id); }
    });
  });
  const names = add(svg, "g", { class: "names" });
  add(names, "rect", { x: 0, y: 0, width: SIDE - 20, height: height - 60 });
  data.rows.forEach((name, row) => add(names, "text", { class: "axis", x: 6, y: y({ row }) + 4 }, name));
  follow(root);
  const features = nodes.filter((n) => n.kind === "feature").length;
  shown.textContent = `Showing ${features} of ${data.features_of} active features (${data.features} traced), ${edges.length} of ${data.edges_of} edges`;
  say("");
}

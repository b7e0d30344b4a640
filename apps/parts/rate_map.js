// Failures by checkpoint as tables of buttons, one table a domain. A click, Enter or the space bar chooses a square.

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".rates");
  root.send = setTriggerValue;
  // The squares stay where they are, and the focus with them, when only another one is pressed.
  const drawn = JSON.stringify([data.columns, data.domains]);
  if (drawn !== root.drawn) {
    const focused = parentElement.activeElement?.dataset?.place;
    root.replaceChildren(...data.domains.map((domain) => table(domain, data.columns, root)));
    root.drawn = drawn;
    if (focused) root.querySelector(`[data-place="${CSS.escape(focused)}"]`)?.focus();
  }
  for (const part of root.children) {
    const buttons = [...part.querySelectorAll("button")];
    const pressed = buttons.find((button) => button.dataset.place === data.pressed);
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button === pressed));
      button.tabIndex = button === (pressed ?? buttons[0]) ? 0 : -1;
    }
  }
  root.dataset.shows = "rates";
  root.dataset.pressed = data.pressed;
}

function table({ name, rows }, columns, root) {
  const part = element("div", "domain");
  const drawn = part.appendChild(element("table"));
  drawn.append(element("caption", "", name === "all" ? "all domains" : name), head(columns));
  const body = drawn.appendChild(element("tbody"));
  for (const { failure, cells } of rows) {
    const row = body.appendChild(element("tr"));
    row.append(heading("row", failure));
    cells.forEach((cell, at) => {
      const square = row.appendChild(element("td", begins(columns, at)));
      if (cell) square.append(button(cell, root));
      else [square.textContent, square.className] = ["–", `none ${square.className}`];
    });
  }
  part.onkeydown = (event) => move(event, part);
  return part;
}

function head(columns) {
  const top = element("thead");
  const runs = columns.map(({ run }) => run);
  if (new Set(runs).size > 1) {
    const row = top.appendChild(element("tr"));
    row.append(element("td"));
    runs.forEach((run, at) => {
      if (at > 0 && runs[at - 1] === run) return;
      const cell = heading("colgroup", run, `run ${begins(columns, at)}`);
      cell.colSpan = runs.filter((other) => other === run).length;
      row.append(cell);
    });
  }
  const row = top.appendChild(element("tr"));
  row.append(heading("col", "step"));
  columns.forEach(({ step }, at) => row.append(heading("col", step, begins(columns, at))));
  return top;
}

const begins = (columns, at) => (at > 0 && columns[at].run !== columns[at - 1].run ? "begins" : "");

function button(cell, root) {
  const made = element("button", "", cell.text);
  made.type = "button";
  made.dataset.place = cell.place;
  made.title = cell.title;
  made.setAttribute("aria-label", cell.title);
  [made.style.backgroundColor, made.style.color] = [cell.color, cell.ink];
  made.onclick = () => root.send("place", cell.place);
  return made;
}

// Arrow keys go from square to square, past those that have no samples.
function move(event, part) {
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (!steps || event.target.localName !== "button") return;
  event.preventDefault();
  const rows = [...part.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  let y = rows.findIndex((row) => row.includes(event.target.parentElement));
  let x = rows[y].indexOf(event.target.parentElement);
  do [y, x] = [y + steps[0], x + steps[1]];
  while (rows[y]?.[x] && !rows[y][x].firstElementChild);
  rows[y]?.[x]?.firstElementChild.focus();
}

function heading(scope, text, className = "") {
  const made = element("th", className, text);
  made.scope = scope;
  return made;
}

function element(tag, className = "", text) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

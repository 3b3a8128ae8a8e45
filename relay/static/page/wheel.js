/** The wheel's numbers: what an event says of one, and how the newest fifty are drawn. */

export const NEWEST = 50;
const NUMBERS = 37;
const COLORS = ["red", "black", "green"];
const BAR = { width: 8, step: 10, foot: 140, height: 134 };

/** The number that an event's data holds, or null. */
export function numberOf(data) {
  const number = data?.number;
  const value = Number.isInteger(number) ? number : number?.value;
  if (!Number.isInteger(value) || value < 0 || value >= NUMBERS) return null;
  return { value, color: COLORS.includes(number.color) ? number.color : value ? "black" : "green" };
}

/** Draws the numbers, newest first. `words` names colours; `$` finds the page's elements. */
export function draw($, numbers, words) {
  const [last] = numbers;
  $("last").className = `last ${last?.color ?? ""}`;
  $("last-number").textContent = last?.value ?? "–";
  $("last-color").textContent = last ? words[last.color] : "";
  $("none").hidden = Boolean(last);
  $("numbers").classList.toggle("none", !last);
  $("newest").replaceChildren(...numbers.map((number) => chip(number, words)));
  const counts = Object.fromEntries(COLORS.map((color) => [color, numbers.filter((number) => number.color === color).length]));
  for (const color of COLORS) $(`count-${color}`).textContent = counts[color];
  drawShare($("share"), counts, numbers.length);
  drawChart($("chart"), numbers, words);
}

function chip(number, words) {
  const item = document.createElement("li");
  item.className = number.color;
  const color = document.createElement("span");
  color.className = "unseen";
  color.textContent = ` ${words[number.color]}`;
  item.append(String(number.value), color);
  return item;
}

function drawShare(svg, counts, all) {
  let x = 0;
  svg.replaceChildren(
    ...COLORS.map((color) => {
      const width = all ? (100 * counts[color]) / all : 0;
      const part = shape("rect", { class: color, x, y: 0, width, height: 4 });
      x += width;
      return part;
    }),
  );
}

/** How often each number came, as bars in the order of the numbers. */
function drawChart(svg, numbers, words) {
  const times = new Array(NUMBERS).fill(0);
  const colors = new Array(NUMBERS).fill("black");
  for (const { value, color } of numbers) {
    times[value] += 1;
    colors[value] = color;
  }
  const most = Math.max(4, ...times);
  const parts = [shape("line", { x1: 0, x2: BAR.step * NUMBERS, y1: BAR.foot + 0.5, y2: BAR.foot + 0.5 })];
  times.forEach((count, value) => {
    const height = (BAR.height * count) / most;
    const x = value * BAR.step + (BAR.step - BAR.width) / 2;
    if (count) parts.push(shape("rect", { class: colors[value], x, y: BAR.foot - height, width: BAR.width, height, rx: 1.5 }));
    if (value % 3 === 0) parts.push(shape("text", { x: (value + 0.5) * BAR.step, y: BAR.foot + 10 }, String(value)));
  });
  const title = svg.querySelector("title");
  title.textContent = words.chart(times.flatMap((count, value) => (count && count === Math.max(...times) ? [value] : [])), Math.max(...times));
  svg.replaceChildren(title, ...parts);
}

function shape(name, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}

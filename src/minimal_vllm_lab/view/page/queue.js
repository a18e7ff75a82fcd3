// Draw the lists of waiting, running and finished requests.

import { chip, ElementCache, make, setChildren } from "./elements.js";
import { colorOf } from "./theme.js";

const MAX_CHIPS = 40;

export class Queue {
  /** @param mine arrival numbers of the requests sent from this page */
  constructor(document, mine) {
    this.mine = mine;
    this.chips = new ElementCache();
    this.lists = {};
    for (const name of ["waiting", "running", "ended"]) {
      this.lists[name] = [document.getElementById(`${name}-list`), document.getElementById(`${name}-count`)];
    }
  }

  draw(state) {
    this.fill("waiting", state.inOrder("waiting"), (r) => (r.preemptions ? " ⟲" : ""));
    this.fill("running", state.inOrder("running"), () => "");
    const last = state.ended.slice(-12).reverse();
    this.fill("ended", last, (r) => ` ${r.reason}`, state.numEnded);
    this.chips.endDrawing();
  }

  fill(name, requests, note, count = requests.length) {
    const [list, counter] = this.lists[name];
    counter.textContent = count;
    const chips = requests.slice(0, MAX_CHIPS).map((request) => this.chip(name, request, note(request)));
    if (requests.length > MAX_CHIPS) chips.push(make("span", "hint", `+${requests.length - MAX_CHIPS}`));
    setChildren(list, chips);
  }

  chip(name, request, note) {
    const isMine = this.mine.has(request.arrival);
    return this.chips.get([name, request.arrival, note, isMine, colorOf(request.arrival)].join(" "), () => {
      const button = chip(request.arrival, note);
      button.classList.toggle("mine", isMine);
      button.title = `${isMine ? "your prompt" : request.id}: ${request.numPrompt} prompt tokens`;
      return button;
    });
  }
}

// Who waits, who runs, and who has ended.

import { chip, make } from "./inspector.js";

const MAX_CHIPS = 40;

export class Queue {
  constructor(document) {
    this.lists = {};
    for (const name of ["waiting", "running", "ended"]) {
      this.lists[name] = [document.getElementById(`${name}-list`), document.getElementById(`${name}-count`)];
    }
  }

  draw(state, mine) {
    this.fill("waiting", state.inOrder("waiting"), (r) => (r.preemptions ? " ⟲" : ""), mine);
    this.fill("running", state.inOrder("running"), () => "", mine);
    const last = state.ended.slice(-12).reverse();
    this.fill("ended", last, (r) => ` ${r.reason}`, mine, state.numEnded);
  }

  fill(name, requests, note, mine, count = requests.length) {
    const [list, counter] = this.lists[name];
    counter.textContent = count;
    const chips = requests.slice(0, MAX_CHIPS).map((request) => {
      const button = chip(request.arrival, note(request));
      if (mine.has(request.arrival)) button.classList.add("mine");
      button.title = `${request.id}: ${request.numPrompt} prompt tokens`;
      return button;
    });
    if (requests.length > MAX_CHIPS) chips.push(make("span", "hint", `+${requests.length - MAX_CHIPS}`));
    list.replaceChildren(...chips);
  }
}

// Sends questions to the server, and shows its errors.

import { $ } from "./make.js";

export async function ask(question, body = {}) {
  let answer;
  try {
    answer = await fetch(`ask/${question}`, { method: "POST", body: JSON.stringify(body) });
  } catch {
    throw trouble("the explorer has ended", "this page", "start `clipmill explore` again");
  }
  const said = await answer.json();
  if (!answer.ok) throw trouble(said.found, said.where, said.do);
  return said;
}

function trouble(found, where, what) {
  const error = new Error(`${found} (${where}): ${what}`);
  $("trouble").textContent = error.message;
  $("trouble").hidden = false;
  return error;
}

export const calm = () => { $("trouble").hidden = true; };

// Runs the latest of several calls: while one runs, only the last call waits.
export function newest(work) {
  let waiting = false, running = false;
  return async function go() {
    waiting = true;
    if (running) return;
    running = true;
    try {
      while (waiting) {
        waiting = false;
        await work();
      }
    } catch (error) {
      console.warn(error.message);
    } finally {
      running = false;
    }
  };
}

"use strict";
// Sends a photo to the program that shows this page, and shows what comes back.

{
  const at = Object.fromEntries(["drop", "file", "choose", "sample", "state", "bar"].map(
    (id) => [id, document.getElementById(id)]));
  const most = Number(at.drop.dataset.most);
  let busy = false;

  const tell = (text, bad = false) => {
    at.state.textContent = text;
    at.state.classList.toggle("bad", bad);
  };

  const wait = (waits) => {
    busy = waits;
    at.bar.hidden = !waits;
    at.choose.disabled = at.sample.disabled = waits;
    document.getElementById("viewer").setAttribute("aria-busy", waits);
  };

  // Lines of JSON: stages, then the content or an error.
  async function* lines(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n");
      rest = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  }

  async function ask(route, name, body) {
    if (busy) return;
    wait(true);
    tell("Sending");
    try {
      const response = await fetch(route, {
        method: "POST", body, headers: { "Content-Type": "application/octet-stream" },
      });
      if (!response.ok) {
        const answer = await response.json().catch(() => ({}));
        tell(answer.error || `The program failed (${response.status}).`, true);
        return;
      }
      let shown = false;
      for await (const line of lines(response)) {
        if (line.error) throw new Error(line.error);
        if (line.stage) tell(line.stage);
        if (line.content) {
          await globalThis.viewer.show({ ...line.content, title: name });
          shown = true;
        }
      }
      if (!shown) throw new Error("The answer broke off.");
      tell("Done. Turn it.");
      document.getElementById("canvas").focus({ preventScroll: true });
      document.getElementById("viewer").scrollIntoView();
    } catch (error) {
      const lost = error instanceof TypeError || error instanceof SyntaxError;
      tell(lost ? "No answer: is the program still running?" : error.message, true);
    } finally {
      wait(false);
    }
  }

  function send(file) {
    if (!file) return;
    if (file.size > most) {
      tell(`This file has ${Math.ceil(file.size / 1e6)} MB; at most ${most / 1e6} MB.`, true);
      return;
    }
    ask("photo", file.name.replace(/\.[^.]*$/, "") || "photo", file);
  }

  at.choose.addEventListener("click", () => at.file.click());
  at.file.addEventListener("change", () => { send(at.file.files[0]); at.file.value = ""; });
  at.sample.addEventListener("click", () => ask("sample", "Synthetic face", ""));
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      at.drop.classList.toggle("over", name === "dragover");
      if (name === "drop") send(event.dataTransfer.files[0]);
    });
  }
}

// Lets a served page follow its server: whenever state.json tells of another version, the parts that change are taken
// from the new page. remember() returns a function that puts back what the reader has opened or sorted.
function follow(version, milliseconds, subject, command, remember = () => () => {}) {
  const changing = ["#state", "#main", "nav"];
  const get = path => fetch(path, {cache: "no-store"});
  async function look() {
    const live = document.getElementById("live");
    try {
      const found = await (await get("state.json")).json();
      if (found.version !== version) {
        const page = new DOMParser().parseFromString(await (await get("./")).text(), "text/html");
        const restore = remember();
        for (const part of changing) document.querySelector(part)?.replaceWith(page.querySelector(part));
        restore();
        version = found.version;
      } else if (live.className) {
        live.className = "";
        live.textContent = `This page follows the ${subject} by itself.`;
      }
    } catch (error) {
      live.className = "stopped";
      live.textContent = `${command} does not answer; this is the last state it showed.`;
    }
    setTimeout(look, milliseconds);
  }
  setTimeout(look, milliseconds);
}

// The chat and the fleet's state. Text of users and models goes into the page as text alone, never as markup.

const POLL_MILLISECONDS = 1000;
const SHOWN = 120;

const at = (id) => document.getElementById(id);
const key = at("key");
const history = [];
let messages = [];
let model = null;
let answer = null; // the AbortController of the answer under way
let last = null;

key.value = sessionStorage.getItem("key") ?? "";
key.addEventListener("change", () => sessionStorage.setItem("key", key.value));

function headers() {
  return key.value ? { authorization: `Bearer ${key.value}` } : {};
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function show(role, text) {
  const item = element("li", text, role);
  at("messages").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

async function* events(body) {
  let text = "";
  for await (const part of body.pipeThrough(new TextDecoderStream())) {
    text += part;
    const lines = text.split("\n");
    text = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

async function ask(question) {
  messages.push({ role: "user", content: question });
  show("user", question);
  const item = show("assistant", "");
  answer = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  try {
    const response = await fetch("../v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...headers() },
      signal: answer.signal,
      body: JSON.stringify({
        model,
        messages,
        stream: true,
        temperature: Number(at("temperature").value),
        max_completion_tokens: Number(at("max-tokens").value),
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      item.textContent += event.choices[0]?.delta?.content ?? "";
      item.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  } finally {
    messages.push({ role: "assistant", content: item.textContent });
    answer = null;
    at("send").disabled = false;
    at("stop").disabled = true;
  }
}

function draw(rate) {
  history.push(rate);
  if (history.length > SHOWN) history.shift();
  const top = Math.max(...history, 1);
  const points = history.map((value, index) => `${SHOWN - history.length + index},${39 - (38 * value) / top}`);
  document.querySelector("#history polyline").setAttribute("points", points.join(" "));
  at("top").textContent = top.toFixed(0);
}

function showStatus(status) {
  model = status.model;
  document.title = `${status.model} · tritonfleet`;
  at("model").textContent = status.model;
  at("phase").textContent = status.phase;
  at("phase").className = status.ready ? "ready" : "unready";
  at("reason").textContent = status.reason ?? "";
  at("running").textContent = status.in_flight - status.waiting;
  at("waiting").textContent = status.waiting;
  const rows = status.ranks.map((rank) => {
    const row = document.createElement("tr");
    row.append(element("td", rank.rank), element("td", rank.host), element("td", `pid ${rank.server}`));
    return row;
  });
  at("ranks").replaceChildren(...rows);
  const now = performance.now();
  if (last && status.completion_tokens >= last.tokens) {
    const rate = ((status.completion_tokens - last.tokens) * 1000) / (now - last.time);
    at("rate").textContent = rate.toFixed(1);
    draw(rate);
  }
  last = { tokens: status.completion_tokens, time: now };
}

async function poll() {
  try {
    const response = await fetch("../status", { headers: headers() });
    const status = await response.json();
    if (!response.ok) throw new Error(status.error.message);
    showStatus(status);
  } catch (error) {
    at("phase").textContent = error instanceof TypeError ? "frontend unreachable" : error.message;
    at("phase").className = "unready";
  }
  setTimeout(poll, POLL_MILLISECONDS);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || answer) return;
  at("question").value = "";
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => answer?.abort());
at("clear").addEventListener("click", () => {
  answer?.abort();
  messages = [];
  at("messages").replaceChildren();
});
poll();

// SPDX-License-Identifier: Apache-2.0
// Keeps the board current: asks for the page again and puts its board in place of the one that is shown.
"use strict";

(() => {
  const EVERY_MS = 2000;
  const TYPING_MS = 250;
  const TIMEOUT_MS = 30000;

  const board = document.getElementById("board");
  const news = document.getElementById("news");
  const state = document.getElementById("state");
  const filter = document.getElementById("q");
  const pause = document.getElementById("pause");

  let timer = 0;
  let asking = null;
  let isTimed = false; // whether the request that is on its way was sent by the timer
  let isPaused = false;
  let current = Date.now();

  function show(text, isFailing) {
    state.textContent = text;
    state.classList.toggle("failing", isFailing);
  }

  // A screen reader hears of another set of conditions, and not of each number that changes.
  function tell(fresh) {
    if (fresh.dataset.conditions !== board.dataset.conditions) {
      news.textContent = fresh.dataset.news;
      board.dataset.conditions = fresh.dataset.conditions;
    }
  }

  function isSelecting() {
    const selection = document.getSelection();
    return !selection.isCollapsed && board.contains(selection.anchorNode);
  }

  function replace(fresh) {
    const focused = board.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    board.replaceChildren(...fresh.childNodes);
    if (focused !== null) {
      const same = [...board.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused);
      (same || board).focus({ preventScroll: true });
    }
  }

  async function ask(signal) {
    const url = new URL(location.href);
    url.username = url.password = url.hash = ""; // fetch() refuses a URL with a password
    const response = await fetch(url, { cache: "no-store", headers: { Accept: "text/html" }, signal });
    if (!response.ok) {
      throw new Error(`HTTP status ${response.status}`);
    }
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById("board");
    if (fresh === null) {
      throw new Error("the answer is no board");
    }
    return fresh;
  }

  async function update(byTimer = false) {
    clearTimeout(timer);
    isTimed = byTimer;
    if (asking !== null) {
      asking.abort();
    }
    const mine = (asking = new AbortController());
    const began = Date.now();
    const overdue = setTimeout(() => mine.abort(new Error("no answer")), TIMEOUT_MS);
    try {
      const fresh = await ask(mine.signal);
      if (mine !== asking) {
        return;
      }
      tell(fresh);
      if (!isSelecting()) {
        replace(fresh);
      }
      current = Date.now();
      show(isPaused ? "Paused" : "Live", false);
    } catch (error) {
      if (mine !== asking) {
        return; // a later request replaced this one
      }
      show(`Not current since ${new Date(current).toLocaleTimeString()}: ${error.message}`, true);
    } finally {
      clearTimeout(overdue);
    }
    asking = null;
    // A slow endpoint is asked less often.
    schedule(Math.max(EVERY_MS, 3 * (Date.now() - began)));
  }

  function schedule(delay) {
    clearTimeout(timer);
    if (!isPaused && !document.hidden) {
      timer = setTimeout(update, delay, true);
    }
  }

  function apply() {
    const url = new URL(location.href);
    url.search = filter.value ? new URLSearchParams({ q: filter.value }) : "";
    history.replaceState(null, "", url);
    update();
  }

  filter.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(apply, TYPING_MS);
  });
  filter.form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target instanceof HTMLInputElement;
    if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      filter.focus();
      filter.select();
    } else if (event.key === "Escape" && event.target === filter && filter.value) {
      event.preventDefault();
      filter.value = "";
      apply();
    }
  });
  document.addEventListener("visibilitychange", () => schedule(0));

  pause.hidden = false;
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    if (isPaused && isTimed && asking !== null) {
      asking.abort(); // its answer would change the page
      asking = null;
    }
    pause.setAttribute("aria-pressed", String(isPaused));
    show(isPaused ? "Paused" : "Live", false);
    schedule(0);
  });

  show("Live", false);
  schedule(EVERY_MS);
})();

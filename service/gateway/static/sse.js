/** Server-Sent Events read from a fetch body: EventSource cannot POST. */

/**
 * Yields {event, data} for every event of a text/event-stream body; `data` is parsed JSON.
 * Comments, ids and retry hints are skipped, an event cut off by the end of the stream is dropped.
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* readEvents(body) {
  let event = "message";
  let data = [];
  for await (const line of readLines(body)) {
    if (line === "") {
      if (data.length) yield { event, data: JSON.parse(data.join("\n")) };
      event = "message";
      data = [];
      continue;
    }
    const [, field, value] = line.match(/^([^:]*):? ?(.*)$/s);
    if (field === "event") event = value;
    if (field === "data") data.push(value);
  }
}

/** Yields complete lines; a CR at the end of a chunk waits, since its LF may be in the next one. */
async function* readLines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      yield* lines;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The service's HTTP interface, as far as the page needs it. */

import { readEvents } from "./sse.js";

/** What went wrong, in words for the reader: the server's own where it sent some. */
export class ApiError extends Error {
  constructor(message, { code = "unknown", requestId = "", retryAfterS = null, retryable = true } = {}) {
    super(message);
    this.code = code;
    this.requestId = requestId;
    this.retryAfterS = retryAfterS;
    this.retryable = retryable;
  }
}

export const getInfo = async () => (await request("/info")).json();
export const getClasses = async () => (await (await request("/classes")).json()).classes;
export const getReady = () => request("/readyz");

/** Draws pictures; yields the events `queued`, `progress`, `image` and at last `done`. */
export async function* generate(settings, signal) {
  const response = await request("/generate", { ...json(settings), signal });
  let finished = false;
  try {
    for await (const { event, data } of readEvents(response.body)) {
      if (event === "error") throw new ApiError(data.message, { code: data.code });
      yield { event, data };
      finished ||= event === "done";
    }
  } catch (error) {
    throw error instanceof TypeError ? broken() : error;
  }
  if (!finished) throw broken();
}

/** The tokens of a picture; the server tells its format by its content. */
export async function tokenize(blob, signal) {
  const type = blob.type.startsWith("image/") ? blob.type : "image/unknown";
  const headers = { "Content-Type": type };
  const response = await request("/tokenize", { method: "POST", headers, body: blob, signal });
  return response.json();
}

/** The PNG that token indices [h][w] decode to. */
export async function detokenize(indices, signal) {
  const response = await request("/detokenize", { ...json({ indices, format: "png" }), signal });
  const answer = await response.json();
  return decodePicture(answer.images[0].b64, "png");
}

/** Base64 to Blob; a fetch of a data URL would be refused by the page's content policy. */
export function decodePicture(b64, format) {
  return new Blob([Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0))], { type: `image/${format}` });
}

/** A POST of JSON. A BigInt (seeds reach 2^63-1, doubles only 2^53) is written out in full. */
function json(value) {
  const quoted = JSON.stringify(value, (_, item) => (typeof item === "bigint" ? `bigint:${item}` : item));
  const body = quoted.replace(/"bigint:(\d+)"/g, "$1");
  return { method: "POST", headers: { "Content-Type": "application/json" }, body };
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is it still running?", { code: "unreachable" });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const { message, code, request_id: requestId } = body.error ?? {};
  const retryAfterS = Number.parseInt(response.headers.get("Retry-After"), 10);
  return new ApiError(message ?? `The server answered ${response.status} ${response.statusText}.`, {
    code,
    requestId: requestId ?? response.headers.get("X-Request-ID") ?? "",
    retryAfterS: Number.isNaN(retryAfterS) ? null : retryAfterS,
    retryable: response.status >= 500 || response.status === 429,
  });
}

function broken() {
  return new ApiError("The connection broke before the pictures were finished.", { code: "broken_stream" });
}

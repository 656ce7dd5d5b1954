/** The service's HTTP interface, as far as the page needs it. */

import { askForKey, currentKey } from "./key.js";
import { sentence } from "./message.js";
import { readEvents } from "./sse.js";

/** Whoever watches the pictures form can cancel them; the service's own deadline suits programs. */
const PATIENCE_MS = 600_000;

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

export const getModels = async () => (await (await request("/v1/models")).json()).data.map(({ id }) => id);
export const getInfo = async (model) => (await request(`/info?${query({ model })}`)).json();
export const getClasses = async (model) => (await (await request(`/classes?${query({ model })}`)).json()).classes;
export const getReady = () => request("/readyz");

/** Draws pictures; yields the events `queued`, `progress`, `image` and at last `done`. */
export async function* generate(order, signal) {
  const body = json({ ...order, stream: true, deadline_ms: PATIENCE_MS });
  const response = await request("/generate", { ...body, signal });
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

/** The tokens of a picture file, the picture that they decode to, and how near that comes (dB, null: the same). */
export async function reconstruct(blob, model, signal) {
  // The server tells the format by the content.
  const type = blob.type.startsWith("image/") ? blob.type : "image/unknown";
  const options = { method: "POST", headers: { "Content-Type": type }, body: blob, signal };
  const { tokens, images } = await (await request(`/reconstruct?${query({ model })}`, options)).json();
  return { tokens, picture: decodePicture(images[0].b64), psnr: images[0].psnr_db };
}

/** The picture of a token grid. @param {string[][]} tokens */
export async function detokenize(tokens, model, signal) {
  const response = await request("/detokenize", { ...json({ tokens, model, format: "png" }), signal });
  return decodePicture((await response.json()).images[0].b64);
}

/** The picture after operations on the bits of a token grid, and the tokens after them. */
export async function edit(tokens, operations, model) {
  const response = await request("/edit", json({ tokens, operations, model, format: "png" }));
  const answer = await response.json();
  return { tokens: answer.tokens, picture: decodePicture(answer.images[0].b64) };
}

/** Base64 of a PNG to Blob; a fetch of a data URL would be refused by the page's content policy. */
export function decodePicture(b64) {
  return new Blob([Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

const query = (values) => new URLSearchParams(values);

/** A POST of JSON. A BigInt (seeds reach 2^63-1, doubles only 2^53) is written out in full. */
function json(value) {
  const quoted = JSON.stringify(value, (_, item) => (typeof item === "bigint" ? `bigint:${item}` : item));
  const body = quoted.replace(/"bigint:(\d+)"/g, "$1");
  return { method: "POST", headers: { "Content-Type": "application/json" }, body };
}

/** Sends a request; asks the user for a key, and again, for as long as the server wants another one. */
async function request(path, options) {
  for (;;) {
    const key = currentKey();
    const response = await send(path, options, key);
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401) throw error;
    // Another request may have brought a new key meanwhile.
    const reason = key === null ? "This server asks for an API key." : sentence(error.message);
    if (currentKey() === key && !(await askForKey(reason))) throw error;
  }
}

async function send(path, options, key) {
  const authorization = key === null ? {} : { Authorization: `Bearer ${key}` };
  try {
    return await fetch(path, { ...options, headers: { ...options?.headers, ...authorization } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const advice = navigator.onLine ? "Is it still running?" : "This device is offline.";
    throw new ApiError(`The server does not answer. ${advice}`, { code: "unreachable" });
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const { message, code, request_id: requestId } = body.error ?? {};
  const retryAfterS = Number.parseInt(response.headers.get("Retry-After"), 10);
  return new ApiError(message ?? `The server answered ${response.status} ${response.statusText}.`, {
    code,
    requestId: requestId ?? response.headers.get("X-Request-ID") ?? "",
    retryAfterS: Number.isNaN(retryAfterS) ? null : retryAfterS,
    retryable: response.status >= 500 || [401, 429].includes(response.status),
  });
}

function broken() {
  return new ApiError("The connection broke before the work was finished.", { code: "broken_stream" });
}

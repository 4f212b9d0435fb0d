// What all views share: the stores, the chosen one, and who wants to know of a change.

import { get, v1 } from "./api.js";

// `wanted`: the store to begin with; `indexing`: how many uploads are not in it yet.
export const state = { stores: [], limits: {}, store: null, wanted: "", indexing: 0 };
export const changes = new EventTarget();

/** Ask the server for its stores; the chosen one stays chosen. */
export async function refresh() {
  const told = await get(v1("stores"));
  const name = state.store?.name || state.wanted;
  state.stores = told.data;
  state.limits = told.limits;
  state.store = told.data.find((each) => each.name === name) || told.data[0] || null;
  if (name && state.store?.name !== name) changes.dispatchEvent(new Event("chosen"));
  changes.dispatchEvent(new Event("stores"));
}

export function choose(name) {
  state.store = state.stores.find((each) => each.name === name) || state.store;
  changes.dispatchEvent(new Event("chosen"));
  changes.dispatchEvent(new Event("stores"));
}

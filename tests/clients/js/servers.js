/** The URLs of the two servers; see tests/clients/conftest.py. */

const url = (name) => {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set; run these tests with 'make clients'.`);
  return value;
};

export const real = url("TUNESERVE_REAL_URL");
export const scripted = url("TUNESERVE_SCRIPTED_URL");
export const ANSWER = "It is 21 degrees in Oslo.";

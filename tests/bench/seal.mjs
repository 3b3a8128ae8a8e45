// How long npm's packages take to seal what stands in the first argument: microseconds, by package and kind of password.
import Hapi from "@hapi/iron";
import * as Web from "iron-webcrypto";

const [text, string, times] = process.argv.slice(2);
const value = JSON.parse(text);
const raw = Buffer.alloc(32, 7);
const found = {};
for (const [name, lib] of Object.entries({ "@hapi/iron": Hapi, "iron-webcrypto": Web }))
  for (const [kind, password] of Object.entries({ raw, string })) {
    const options = { ...lib.defaults, ttl: 300000 };
    const began = process.hrtime.bigint();
    for (let time = 0; time < Number(times); time++) await lib.seal(value, password, options);
    found[`${name}, ${kind}`] = Number(process.hrtime.bigint() - began) / 1000 / Number(times);
  }
process.stdout.write(JSON.stringify(found));

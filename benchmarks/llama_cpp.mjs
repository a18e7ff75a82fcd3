// llama.cpp behind a pipe: completes batches of jobs that benchmarks/cpu_vs_llama_cpp.py sends.
//
// node llama_cpp.mjs PACKAGE MODEL THREADS SEQUENCES CONTEXT
//
// Each line of standard input is a list of {prompt, num_tokens}. Each is answered by a line with the
// seconds that the batch took, by the clock and of CPU time, and the output tokens of each job.
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [nodePackage, modelPath, threads, sequences, contextSize] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(`${nodePackage}/dist/index.js`));
const llama = await getLlama({
    gpu: false, build: "never", maxThreads: Number(threads), logLevel: "error", skipDownload: true,
});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({
    sequences: Number(sequences), contextSize: Number(contextSize), batchSize: 512,
    threads: {ideal: Number(threads), min: Number(threads)},
});
const slots = Array.from({length: Number(sequences)}, () => context.getSequence());

async function complete({prompt, num_tokens}, slot) {
    const tokens = [];
    for await (const token of slot.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length === num_tokens) break;
    }
    return tokens;
}

console.log(JSON.stringify({ready: true}));
for await (const line of createInterface({input: process.stdin})) {
    for (const slot of slots) await slot.clearHistory();
    const begun = performance.now(), used = process.cpuUsage();
    const outputs = await Promise.all(JSON.parse(line).map((job, i) => complete(job, slots[i])));
    const seconds = (performance.now() - begun) / 1000, {user, system} = process.cpuUsage(used);
    console.log(JSON.stringify({seconds, cpu_seconds: (user + system) / 1e6, outputs}));
}
process.exit(0);

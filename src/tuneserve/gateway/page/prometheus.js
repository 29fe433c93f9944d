// Prometheus' text format, and percentiles of its histograms.

const LINE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /([A-Za-z_]\w*)="((?:\\.|[^"\\])*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\[n"\\]/g, (found) => ESCAPES[found]);
    samples.push({ name: match[1], labels, value: Number(match[3]) });
  }
  return samples;
}

export function valueOf(samples, name, model) {
  return samples.find((each) => each.name === name && each.labels.model_name === model)?.value ?? null;
}

// Returns [[upper bound, count], …] of a histogram, less what was counted `before`.
export function buckets(samples, name, model, before = []) {
  const of = (all) => all.filter((each) => each.name === `${name}_bucket` && each.labels.model_name === model);
  const earlier = new Map(of(before).map((each) => [each.labels.le, each.value]));
  return of(samples).map(({ labels, value }) => [labels.le === "+Inf" ? Infinity : Number(labels.le), value - (earlier.get(labels.le) ?? 0)]);
}

// As Prometheus' histogram_quantile: linear within a bucket, and the last finite bound beyond it; null without samples.
export function quantile(share, found) {
  const total = found.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  const rank = share * total;
  const index = found.findIndex(([, count]) => count >= rank);
  const [low, below] = index > 0 ? found[index - 1] : [0, 0];
  const [high, count] = found[index];
  return high === Infinity ? low : low + ((high - low) * (rank - below)) / (count - below || 1);
}

// Normal numbers that follow from a seed, the same ones as in sample.py.

const MASK = (1n << 64n) - 1n;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const BUMPS = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];

/**
 * Philox 4x64 of ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): four random words.
 * @param {bigint} counter Which four.
 * @param {bigint[]} key Two words.
 */
function philox(counter, key) {
  let [a, b, c, d] = [counter & MASK, counter >> 64n, 0n, 0n];
  let [k, l] = key;
  for (let round = 0; round < 10; round++) {
    const [one, two] = [a * MULTIPLIERS[0], c * MULTIPLIERS[1]];
    [a, b, c, d] = [(two >> 64n) ^ b ^ k, two & MASK, (one >> 64n) ^ d ^ l, one & MASK];
    [k, l] = [(k + BUMPS[0]) & MASK, (l + BUMPS[1]) & MASK];
  }
  return [a, b, c, d];
}

/**
 * Endless normal numbers, by the transform of Box and Muller (1958).
 * @param {number} seed
 * @param {number} video
 * @returns {Generator<number, never, void>}
 */
export function* normals(seed, video) {
  const key = [BigInt(seed), BigInt(video)];
  for (let counter = 1n; ; counter++) {
    const words = philox(counter, key).map((word) => Number(word >> 11n) / 2 ** 53);
    for (let i = 0; i < 4; i += 2) {
      const [radius, angle] = [Math.sqrt(-2 * Math.log1p(-words[i])), 2 * Math.PI * words[i + 1]];
      yield radius * Math.cos(angle);
      yield radius * Math.sin(angle);
    }
  }
}

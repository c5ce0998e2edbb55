// The color formula of fastsc.kernels.color: brightness, contrast, saturation and hue in that
// order, each clamped to [0, 1]; here on levels 0..255, in double precision, rounded once at the
// end.

/**
 * @param {Uint8ClampedArray} rgb three bytes a pixel
 * @param {number[]} factors brightness, contrast and saturation (>= 0), hue in turns
 * @returns {Uint8ClampedArray} four bytes a pixel, opaque, as ImageData wants them
 */
function recolor(rgb, factors) {
  const [brightness, contrast, saturation, hue] = factors;
  const pixels = rgb.length / 3;
  const out = new Uint8ClampedArray(4 * pixels).fill(255);
  const clamp = (level) => Math.min(Math.max(level, 0), 255);
  const grey = (r, g, b) => 0.2989 * r + 0.587 * g + 0.114 * b;
  // The weight of a channel's share of the chroma, from the hue on a circle of six.
  const weight = (place) => {
    const k = ((place % 6) + 6) % 6;
    return Math.min(Math.max(Math.min(k, 4 - k), 0), 1);
  };

  // Contrast is about the mean grey of the whole image, in its new brightness.
  let sum = 0;
  for (let i = 0; i < rgb.length; i += 3) {
    sum += grey(
      clamp(brightness * rgb[i]),
      clamp(brightness * rgb[i + 1]),
      clamp(brightness * rgb[i + 2]),
    );
  }
  const mean = sum / pixels;
  const tone = (level) => clamp(contrast * clamp(brightness * level) + (1 - contrast) * mean);

  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    let r = tone(rgb[i]);
    let g = tone(rgb[i + 1]);
    let b = tone(rgb[i + 2]);
    const rest = (1 - saturation) * grey(r, g, b);
    r = clamp(saturation * r + rest);
    g = clamp(saturation * g + rest);
    b = clamp(saturation * b + rest);
    const value = Math.max(r, g, b);
    const chroma = value - Math.min(r, g, b);
    if (hue !== 0 && chroma > 0) {
      let turn = 6 * hue;
      if (value === r) turn += (g - b) / chroma;
      else if (value === g) turn += 2 + (b - r) / chroma;
      else turn += 4 + (r - g) / chroma;
      r = value - chroma * weight(turn + 5);
      g = value - chroma * weight(turn + 3);
      b = value - chroma * weight(turn + 1);
    }
    out[j] = r; // a clamped array rounds what is written
    out[j + 1] = g;
    out[j + 2] = b;
  }
  return out;
}

// SPDX-License-Identifier: Apache-2.0
// What a colour says: green is healthy, yellow to red is not, and all others say nothing of health.
import type { FieldConfig, GrafanaTheme2 } from '@grafana/data';

export function isHealthy(colour: string | undefined, theme: GrafanaTheme2): boolean {
  const { hue, saturation } = parts(colour, theme);
  return saturation > 0.2 && hue >= 75 && hue < 170;
}

function isSignal(colour: string, theme: GrafanaTheme2): boolean {
  const { hue, saturation } = parts(colour, theme);
  return saturation > 0.2 && (hue < 170 || hue >= 320);
}

// The colours that a value can have.
function possible({ color, thresholds, mappings }: FieldConfig): string[] {
  const mapped = (mappings ?? []).flatMap((mapping: any) =>
    mapping.type === 'value'
      ? Object.values<any>(mapping.options).map((result) => result.color)
      : mapping.type === 'special' && /null|empty/.test(mapping.options.match)
        ? []
        : [mapping.options.result.color],
  );
  const own =
    color?.mode === 'fixed' ? [color.fixedColor ?? 'green'] : color?.mode === 'thresholds' || !color ? (thresholds?.steps ?? []).map((step) => step.color) : [];
  return [...new Set([...own, ...mapped.filter(Boolean)])];
}

// Whether the colour looks like a judgement and is always the same.
export function isStuck(config: FieldConfig, theme: GrafanaTheme2): boolean {
  const colours = possible(config);
  return colours.length === 1 && isSignal(colours[0], theme);
}

function parts(colour: string | undefined, theme: GrafanaTheme2): { hue: number; saturation: number } {
  const [red, green, blue] = channels(theme.visualization.getColorByName(colour ?? 'text'));
  const [most, least] = [Math.max(red, green, blue), Math.min(red, green, blue)];
  const range = most - least;
  if (!range) {
    return { hue: 0, saturation: 0 };
  }
  const sector = most === red ? (green - blue) / range : most === green ? 2 + (blue - red) / range : 4 + (red - green) / range;
  return { hue: (sector * 60 + 360) % 360, saturation: range / most };
}

function channels(colour: string): number[] {
  if (colour.startsWith('#')) {
    return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  }
  return (colour.match(/[\d.]+/g) ?? ['0', '0', '0']).slice(0, 3).map((one) => Number(one) / 255);
}

// What the dashboard takes from the page of `aha report`; build.mjs finds it.
declare module "report:numbers.js" {
  /** A number as JSON holds it: those that aren't finite are words there. */
  export function value(x: unknown): number;
  export function grouped(n: number): string;
  export function measure(x: number): string;
  export function percent(x: number): string;
  export function compact(n: number): string;
  export function plural(n: number, one: string, many?: string): string;
  export function moment(us: number): string;
  export function duration(us: number): string;
  export function tickText(x: number, step: number, most: number): string;
  export function shortTick(x: number): string;
  export function smoothed(values: number[], sigma: number): number[];
}

declare module "report:figures.js" {
  /** A figure, or, with a prefix, one for each measure that begins so. */
  export interface Panel {
    title: string | ((name: string) => string);
    keys?: string[];
    labels?: string[];
    prefix?: string;
    isTogether?: boolean;
    unit: string;
    isShare?: boolean;
    isFromZero?: boolean;
    isExact?: boolean;
    max?: number;
  }
  export interface Group {
    title?: string;
    isHero?: boolean;
    panels: Panel[];
  }
  export const panels: Record<string, Group[]>;
}

declare module "report:*.css";
declare module "*.css";

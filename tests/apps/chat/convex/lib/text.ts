// Helpers without functions of their own; modules like this one become shared chunks.
export function shorten(text: string, length: number): string {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`;
}

export function boom(what: string): never {
  throw new Error(`boom: ${what}`);
}

// Tables of the chat.
import { defineSchema, defineTable } from "convex/server";
import { v } from "convex/values";

export default defineSchema({
  users: defineTable({
    name: v.string(),
    email: v.optional(v.string()),
  }).index("by_name", ["name"]),
  rooms: defineTable({
    title: v.string(),
    members: v.array(v.id("users")),
  }).index("by_title", ["title"]),
  messages: defineTable({
    room: v.id("rooms"),
    author: v.id("users"),
    body: v.string(),
    kind: v.union(v.literal("text"), v.literal("notice")),
    likes: v.optional(v.int64()),
  })
    .index("by_room", ["room"])
    .index("by_room_and_author", ["room", "author"]),
  blobs: defineTable({
    bytes: v.bytes(),
    count: v.int64(),
    ratio: v.number(),
    extra: v.any(),
  }),
  counters: defineTable({ name: v.string(), value: v.number() }).index("by_name", ["name"]),
  duty: defineTable({ doctor: v.string(), onCall: v.boolean() }).index("by_on_call", ["onCall"]),
});

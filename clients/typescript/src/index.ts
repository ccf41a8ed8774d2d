export { compareCursors } from "./cursors.js";
export {
  CursorLostError,
  FeedClosedError,
  FeedError,
  MirrorTooOldError,
  NoResponseError,
  PartitionsError,
  UnreadableMessageError,
} from "./errors.js";
export { SessionFeed } from "./feed.js";
export type {
  After,
  ConsumeOptions,
  FeedOptions,
  FollowOptions,
  IteratorOptions,
  RedisClient,
  SubscribeOptions,
} from "./feed.js";
export type { OnReconnect } from "./errors.js";
export type { AskingMirror, Mirror, MirrorOptions, PastMaxAge } from "./mirror.js";
export type { Event, HttpRequest, Session, SessionActivity, SessionTask, Status } from "./messages.js";
export type { LiveStatus, SessionUpdate } from "./update.js";

import { cronJobs } from "convex/server";
import { internal } from "./_generated/api";

const crons = cronJobs();

crons.interval("forget test counters", { hours: 12 }, internal.admin.wipe, { name: "scratch" });
crons.daily("double", { hourUTC: 3, minuteUTC: 30 }, internal.admin.twice, { n: 21 });
crons.cron("every Monday", "0 9 * * 1", internal.admin.wipe, { name: "weekly" });

export default crons;

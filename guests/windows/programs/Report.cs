// SPDX-License-Identifier: GPL-2.0-or-later
// report: one JSON object about the time since the report before.
//
// The first call starts what measures stalls, so that a guest which nobody asks does not wake a thousand times a second; its
// longest_stall_us is null.
using System;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;

namespace Memshare
{
    static class Report
    {
        // A pass takes seconds; with this much memory pressure it is no longer "all the time".
        const long VerifierLateNs = 120L * 1000 * 1000 * 1000;

        public static void Run(string[] arguments)
        {
            Counters counters = new Counters();
            if (arguments.Length == 1 && arguments[0] == "stalls")
                MeasureStalls(counters);
            bool isMeasured = Background.Runs("stalls");
            Console.WriteLine(Describe(counters, isMeasured));
            if (!isMeasured)
                Background.Start("stalls", "report", "stalls");
        }

        static string Describe(Counters counters, bool isMeasured)
        {
            double seconds = counters.TakeInterval() / 1e9;
            long operations = 0, stall = counters.TakeStall();
            StringBuilder latency = new StringBuilder();
            for (int bucket = 0; bucket < Counters.Buckets; bucket++)
            {
                long ended = counters.TakeLatency(bucket);
                operations += ended;
                if (ended > 0)
                    latency.AppendFormat("{0}\"{1}\": {2}", latency.Length > 0 ? ", " : "", Counters.BoundUs(bucket), ended);
            }
            return string.Format(
                CultureInfo.InvariantCulture,
                "{{\"load\": \"{0}\", \"load_died\": {6}, \"interval_seconds\": {1:F6}, \"operations\": {2}, " +
                "\"latency_us\": {{{3}}}, \"longest_stall_us\": {4}, \"integrity\": \"{5}\"}}",
                counters.Load.Length > 0 ? counters.Load : "idle", seconds, operations, latency,
                isMeasured ? stall.ToString(CultureInfo.InvariantCulture) : "null", DescribeIntegrity(counters),
                HasLoadDied(counters) ? "true" : "false");
        }

        static bool HasLoadDied(Counters counters)
        {
            long began = counters.LoadBeganNs;
            return began != 0 && !Background.Runs("load") && counters.LoadBeganNs == began; // not one that is being ended
        }

        static string DescribeIntegrity(Counters counters)
        {
            long late = Counters.ClockNs() - counters.VerifierNs;
            if (counters.Wrong.Length > 0)
                return counters.Wrong;
            if (counters.VerifierNs == 0)
                return "no verifier was started";
            if (!Background.Runs("integrity"))
                return "the verifier has ended";
            if (late > VerifierLateNs)
                return "the verifier ended no pass for " + late / 1000000000 + " s";
            return "ok";
        }

        static void MeasureStalls(Counters counters)
        {
            Background.Begin("stalls");
            if (Background.IsWindows)
                TimeBeginPeriod(1); // else a sleep of a millisecond takes 16
            for (long before = Counters.ClockNs(); ;)
            {
                Thread.Sleep(1);
                long now = Counters.ClockNs();
                counters.Stalled((now - before) / 1000);
                before = now;
            }
        }

        [DllImport("winmm.dll", EntryPoint = "timeBeginPeriod")]
        static extern uint TimeBeginPeriod(uint milliseconds);
    }
}

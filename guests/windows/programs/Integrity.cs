// SPDX-License-Identifier: GPL-2.0-or-later
// integrity start BYTES: keeps parts of memory and verifies them, for as long as the guest runs.
//
// Half of the parts are the same in all guests, half are this guest's own. Each pass reads all of them, compares every byte
// with what was written, and rewrites one part of each half with other contents that are known as well: by turns in place,
// and in pages that were freed and taken anew. There are two contents for each part, so that guests part and meet.
using System;
using System.Threading;

namespace Memshare
{
    static unsafe class Integrity
    {
        const int Parts = 32;
        const int PartPauseMs = 100; // so that a pass takes some seconds, and most of that is rest

        static readonly Memory[] memory = new Memory[Parts];
        static readonly ulong[] contents = new ulong[Parts];
        static ulong[] seeds;

        public static void Run(string[] arguments)
        {
            long bytes;
            bool isRun = arguments.Length == 2 && arguments[0] == "run";
            bool isStart = arguments.Length == 2 && arguments[0] == "start";
            if (!(isRun || isStart) || !long.TryParse(arguments[1], out bytes) || bytes < Parts * Pattern.PageBytes)
                throw new Failure("usage: integrity start BYTES, at least " + Parts * Pattern.PageBytes);
            if (isRun)
            {
                Background.Begin("integrity");
                VerifyForGood(new Counters(), bytes / Pattern.PageBytes / Parts);
            }
            new Counters().VerifierNs = Counters.ClockNs();
            Background.Start("integrity", "integrity", "run", arguments[1]);
        }

        static void VerifyForGood(Counters counters, long pages)
        {
            seeds = new[] { Pattern.CommonSeed, Pattern.OwnSeed };
            for (int part = 0; part < Parts; part++)
            {
                memory[part] = new Memory(pages);
                Write(part);
            }
            for (int pass = 0; ; pass++)
            {
                for (int part = 0; part < Parts; part++)
                {
                    Verify(counters, part);
                    Thread.Sleep(PartPauseMs);
                }
                for (int half = 0; half < 2; half++)
                    Rewrite(half * (Parts / 2) + pass % (Parts / 2), pass % 2 == 1);
                counters.VerifierNs = Counters.ClockNs();
            }
        }

        static ulong PageSeed(int part, long page)
        {
            return Pattern.Seed(seeds[part / (Parts / 2)], (ulong)part * 2 + contents[part], (ulong)page);
        }

        static void Write(int part)
        {
            for (long page = 0; page < memory[part].Pages; page++)
                Pattern.Fill(memory[part].Page(page), PageSeed(part, page));
        }

        static void Rewrite(int part, bool isAnew)
        {
            if (isAnew)
            {
                long pages = memory[part].Pages;
                memory[part].Dispose();
                memory[part] = new Memory(pages);
            }
            contents[part] ^= 1;
            Write(part);
        }

        static void Verify(Counters counters, int part)
        {
            for (long page = 0; page < memory[part].Pages; page++)
            {
                int wrong = Pattern.FirstWrong(memory[part].Page(page), PageSeed(part, page));
                if (wrong >= 0)
                    counters.SetWrong("part " + part + ", page " + page + ", byte " + wrong + " is not what was written");
            }
        }
    }
}

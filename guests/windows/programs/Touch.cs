// SPDX-License-Identifier: GPL-2.0-or-later
// touch FRACTION: writes random bytes to free memory until that fraction of the guest's RAM is in use, then frees it.
//
// What is in use at that moment was written by somebody. Windows calls available what it keeps of files and could drop; that
// was written as well, so what is printed errs on the small side.
using System;
using System.Collections.Generic;
using System.Globalization;

namespace Memshare
{
    static class Touch
    {
        const int ChunkPages = 1024;
        // Left for Windows, which would otherwise write to its page file.
        const long FloorBytes = 32L << 20;

        public static void Run(string[] arguments)
        {
            double fraction;
            if (arguments.Length != 1 ||
                !double.TryParse(arguments[0], NumberStyles.Float, CultureInfo.InvariantCulture, out fraction) ||
                !(fraction > 0 && fraction <= 1))
                throw new Failure("usage: touch FRACTION, more than 0 and at most 1");
            List<Memory> taken = new List<Memory>();
            Ram ram = Ram.Now();
            long wanted = (long)(fraction * ram.TotalBytes);
            for (; ram.TotalBytes - ram.AvailableBytes < wanted && ram.AvailableBytes > FloorBytes; ram = Ram.Now())
                taken.Add(Filled());
            Console.WriteLine(string.Format(CultureInfo.InvariantCulture, "{{\"touched_bytes\": {0}, \"ram_bytes\": {1}}}",
                                            ram.TotalBytes - ram.AvailableBytes, ram.TotalBytes));
            foreach (Memory memory in taken)
                memory.Dispose();
        }

        static unsafe Memory Filled()
        {
            Memory memory = new Memory(ChunkPages);
            ulong family = (ulong)Counters.ClockNs();
            for (long page = 0; page < ChunkPages; page++)
                Pattern.Fill(memory.Page(page), Pattern.Seed(Pattern.OwnSeed, family, (ulong)page));
            return memory;
        }
    }
}

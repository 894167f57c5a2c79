// SPDX-License-Identifier: GPL-2.0-or-later
// Random pages that can be made again: what memory should hold never has to be remembered in memory.
using System;
using System.IO;
using System.Security.Cryptography;

namespace Memshare
{
    static unsafe class Pattern
    {
        public const int PageBytes = 4096;
        public const int PageWords = PageBytes / 8;
        const ulong Common = 0x6d656d7368617265;

        // splitmix64
        public static ulong Word(ulong number)
        {
            unchecked
            {
                number *= 0x9e3779b97f4a7c15;
                number = (number ^ (number >> 30)) * 0xbf58476d1ce4e5b9;
                number = (number ^ (number >> 27)) * 0x94d049bb133111eb;
                return number ^ (number >> 31);
            }
        }

        /// The seed of the page that two numbers name, within a family of pages.
        public static ulong Seed(ulong family, ulong first, ulong second)
        {
            unchecked
            {
                return Word(Word(Word(family + 1) + first) + second);
            }
        }

        public static void Fill(ulong* page, ulong seed)
        {
            for (int i = 0; i < PageWords; i++)
                page[i] = Word(unchecked(seed + (ulong)i));
        }

        /// The first byte of a page that is not as written, or -1.
        public static int FirstWrong(ulong* page, ulong seed)
        {
            for (int i = 0; i < PageWords; i++)
            {
                ulong difference = page[i] ^ Word(unchecked(seed + (ulong)i));
                if (difference == 0)
                    continue;
                int at = i * 8;
                for (; (difference & 0xff) == 0; difference >>= 8)
                    at++;
                return at;
            }
            return -1;
        }

        /// Of what is the same in all guests.
        public static ulong CommonSeed
        {
            get { return Common; }
        }

        /// Of what is this guest's alone: drawn at its first use, since guests that are clones have the same names.
        public static ulong OwnSeed
        {
            get
            {
                string path = Background.PathOf("seed");
                if (!File.Exists(path))
                {
                    byte[] drawn = new byte[8];
                    using (RandomNumberGenerator generator = RandomNumberGenerator.Create())
                        generator.GetBytes(drawn);
                    File.WriteAllBytes(path, drawn);
                }
                return BitConverter.ToUInt64(File.ReadAllBytes(path), 0);
            }
        }
    }
}
